from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinesam import ConfigError
from refinesam_labelstudio.labeling_config import EXAMPLES, ImageTag, Kind, LabelingConfig, OutputTag, PromptTag

CONFIGS = Path(__file__).resolve().parents[2] / "labelstudio_backend" / "labeling_configs"
IMAGE = '<Image name="image" value="$image"/>'


def view(*tags: str) -> LabelingConfig:
    return LabelingConfig.parse(f"<View>{IMAGE}{''.join(tags)}</View>")


def labels(tag: str, name: str, *names: str, more: str = "", to: str = "image") -> str:
    inside = "".join(f'<Label value="{label}"/>' for label in names)
    return f'<{tag} name="{name}" toName="{to}" {more}>{inside}</{tag}>'


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_examples_are_answered(name: str) -> None:
    config = LabelingConfig.parse(EXAMPLES[name])
    assert config.images == (ImageTag("image", "image"),)
    kind = "rectangle" if name == "box" else name
    assert config.output_for("Object").kind == config.output_for(None).kind == kind
    assert [output.kind for output in config.outputs] == [kind]
    assert {(prompt.kind, prompt.labels) for prompt in config.prompts} == {
        ("keypoint", ("Object", "Other")),
        ("rectangle", ("Object", "Other")),
    }


def test_examples_are_the_files() -> None:
    assert {path.stem: path.read_text(encoding="utf-8") for path in CONFIGS.glob("*.xml")} == EXAMPLES


def test_every_tag_that_takes_masks_is_found_in_the_order_of_preference() -> None:
    config = view(
        labels("RectangleLabels", "boxes", "Cat", "Dog"),
        labels("PolygonLabels", "polygons", "Cat", "Dog"),
        labels("BitmaskLabels", "bitmasks", "Cat"),
        labels("BrushLabels", "brushes", "Dog"),
        labels("EllipseLabels", "ellipses", "Cat"),
        '<Choices name="choices" toName="image"><Choice value="good"/></Choices>',
    )
    assert config.outputs == (
        OutputTag("brush", "brushes", "image", ("Dog",)),
        OutputTag("bitmask", "bitmasks", "image", ("Cat",)),
        OutputTag("polygon", "polygons", "image", ("Cat", "Dog")),
        OutputTag("rectangle", "boxes", "image", ("Cat", "Dog")),
    )
    assert config.prompts == ()
    assert config.output_for("Dog").from_name == "brushes"
    assert config.output_for("Cat").from_name == "bitmasks"
    assert config.output_for("Cat", "rectangle").from_name == "boxes"
    assert config.output_for("Cat", "brush").from_name == "bitmasks"
    assert config.output_for(None, "polygon").from_name == "polygons"
    assert [tag.type for tag in config.outputs] == ["brushlabels", "bitmasklabels", "polygonlabels", "rectanglelabels"]


def test_of_a_kind_the_tag_with_the_label_answers() -> None:
    config = view(labels("BrushLabels", "pets", "Cat"), labels("BrushLabels", "trees", "Oak"))
    assert config.output_for("Oak").from_name == "trees"


@pytest.mark.parametrize("kind", get_args(Kind))
def test_labels_in_a_tag_of_their_own(kind: str) -> None:
    config = view(f'<{kind.title()} name="tool" toName="image"/>', labels("Labels", "classes", "Cat"))
    (tag,) = config.outputs
    assert tag == OutputTag(kind, "tool", "image", ("Cat",), labels_from="classes")  # type: ignore[arg-type]
    assert tag.type == kind
    assert config.output_for("Cat") is tag


def test_a_tool_without_labels_takes_what_no_other_does() -> None:
    config = view('<Brush name="tool" toName="image"/>', labels("PolygonLabels", "polygons", "Cat"))
    assert config.output_for("Cat").from_name == "polygons"
    assert config.output_for("Dog").from_name == config.output_for(None).from_name == "tool"
    assert (config.outputs[0].type, config.outputs[0].takes(None), config.outputs[0].takes("Dog")) == (
        "brush",
        True,
        False,
    )


def test_a_smart_box_takes_boxes_only_where_nothing_takes_masks() -> None:
    smart = labels("RectangleLabels", "box", "Cat", more='smart="true"')
    alone = view(smart)
    assert alone.outputs == (OutputTag("rectangle", "box", "image", ("Cat",), smart=True),)
    assert alone.prompts == (PromptTag("rectangle", "box", "image", ("Cat",)),)
    beside = view(smart, labels("PolygonLabels", "polygons", "Dog"))
    assert [tag.kind for tag in beside.outputs] == ["polygon"]
    assert beside.prompts == alone.prompts


@pytest.mark.parametrize("more", ['smart="true"', 'SMART="True"', 'smartOnly="true"', 'smart="false" smartonly="true"'])
def test_smart_tags(more: str) -> None:
    config = view(
        labels("BrushLabels", "brushes", "Cat"),
        labels("KeyPointLabels", "points", "Cat", more=more),
        '<Rectangle name="box" toName="image" smart="true"/>',
        labels("KeyPointLabels", "plain", "Cat", more='smart="false"'),
    )
    assert config.prompts == (
        PromptTag("keypoint", "points", "image", ("Cat",)),
        PromptTag("rectangle", "box", "image", ()),
    )


def test_names_are_read_whatever_their_case_and_aliases_stand_for_labels() -> None:
    xml = """<?xml version="1.0" encoding="utf-8"?>
    <view><!-- a comment --><header value="Pets"/><IMAGE Name="img" Value="$photo"/>
      <brushlabels name="m" toname="img"><View><label Value="A cat" Alias="cat"/><Label value="Hund &amp; Ürs"/></View>
      </brushlabels></view>"""
    config = LabelingConfig.parse(xml)
    assert config.images == (ImageTag("img", "photo"),)
    assert config.outputs[0].labels == ("cat", "Hund & Ürs")


def test_labels_that_come_with_the_task() -> None:
    config = view('<BrushLabels name="mask" toName="image" value="$classes"/>')
    assert config.output_for("whatever").takes("whatever")
    assert config.outputs[0].type == "brushlabels"


def test_other_images_and_other_objects() -> None:
    config = LabelingConfig.parse(
        '<View><Image name="left" value="$a"/><Image name="right" value="$b"/><Image name="logo" value="https://x/y"/>'
        '<Text name="text" value="$t"/><Labels name="words" toName="text"><Label value="Noun"/></Labels>'
        f"{labels('BrushLabels', 'both', 'Cat', to='left, right')}{labels('PolygonLabels', 'p', 'Dog', to='right')}"
        f"{labels('BrushLabels', 'l', 'Cat', to='logo')}</View>"
    )
    assert [image.variable for image in config.images] == ["a", "b"]
    assert [(tag.from_name, tag.to_name) for tag in config.outputs] == [
        ("both", "left"),
        ("both", "right"),
        ("p", "right"),
    ]
    assert config.output_for("Dog", to_name="right").from_name == "p"
    with pytest.raises(ConfigError, match="No tag that takes masks of image 'left' has the label 'Dog', only 'Cat'"):
        config.output_for("Dog", to_name="left")


REPEATED = (
    '<View><Repeater on="$pages"><Image name="page_{{idx}}" value="$pages[{{idx}}].url"/>'
    '<BrushLabels name="m_{{idx}}" toName="page_{{idx}}"><Label value="Cat"/></BrushLabels></Repeater></View>'
)


def test_of_several_images_those_are_answered_that_can_be_and_the_others_are_told() -> None:
    more = f'<Image name="all" valueList="$all"/>{IMAGE}{labels("BrushLabels", "mask", "Cat")}</View>'
    config = LabelingConfig.parse(REPEATED.removesuffix("</View>") + more)
    assert ([image.name for image in config.images], [tag.from_name for tag in config.outputs]) == (["image"], ["mask"])
    assert [reason.split(",")[0] for reason in config.unanswered] == [
        "'all' is shown by valueList",
        "'page_{{idx}}' is shown by <Repeater>",
    ]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "is not XML.*under Labeling Interface"),
        ("<View>", "is not XML"),
        ("brush", "is not XML .*it starts with 'brush'"),
        (None, "is not XML .*it starts with None"),
        (17, "is not XML"),
        ("<View>\0</View>", "is not XML"),
        ("<View>\ud800</View>", "is not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><View>&d;</View>', "is not XML"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><View>&b;</View>', "is not XML"),
        ("<View/>", r'no <Image> tag .*: add one, as in <Image name="image" value="\$image"/>'),
        (
            '<View><Image name="image" valueList="$images"/></View>',
            "'image' is shown by valueList.*not answered: make a",
        ),
        (
            REPEATED,
            "'page_{{idx}}' is shown by <Repeater>, several images a task, which is not answered: make a task of",
        ),
        ('<View><Image value="$image"/></View>', '<Image> has no name: add it, as in <Image name="...">'),
        (f"<View>{IMAGE}</View>", 'takes masks of .image.: add one, as in <BrushLabels name="mask" toName="image">'),
        (f"<View>{IMAGE}{labels('KeyPointLabels', 'k', 'Cat')}</View>", "no tag that takes masks"),
        (f"<View>{IMAGE}{labels('BrushLabels', 'm', 'Cat', to='photo')}</View>", "no tag that takes masks of 'image'"),
        (f"<View>{IMAGE}{labels('BrushLabels', 'm')}</View>", '"m"> has no labels: add one inside, .*"Object"/>'),
        (
            f'<View>{IMAGE}<Brush name="m" toName="image"/>{labels("Labels", "l")}</View>',
            '<Labels name="l"> has no lab',
        ),
        (f'<View>{IMAGE}<BrushLabels toName="image"/></View>', "<BrushLabels> has no name"),
    ],
)
def test_a_config_that_is_not_answered_says_why(xml: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelingConfig.parse(xml)


def test_an_unknown_label_says_what_to_add() -> None:
    with pytest.raises(ConfigError, match="label 'Dog', only 'Bat', 'Cat': add <Label value=\"Dog\"/> to it"):
        view(labels("BrushLabels", "mask", "Cat", "Bat")).output_for("Dog")


@given(
    st.text()
    | st.sampled_from(list(EXAMPLES.values())).flatmap(
        lambda xml: st.integers(0, len(xml)).flatmap(
            lambda at: st.text(alphabet="<>/\"' =$abView", max_size=8).map(lambda text: xml[:at] + text + xml[at + 3 :])
        )
    )
)
def test_any_text_is_a_config_or_the_error(xml: str) -> None:
    try:
        assert LabelingConfig.parse(xml).outputs
    except ConfigError as error:
        assert str(error)
