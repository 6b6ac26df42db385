"""What a project's labeling config asks for: its images, the tags that take masks, the smart tags that ask for one.

Tag and attribute names are read whatever their case, as Label Studio reads them. What belongs to no image (text, video)
is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from refinesam import ConfigError

__all__ = ["EXAMPLES", "MESSAGES", "ImageTag", "Kind", "LabelingConfig", "OutputTag", "PromptTag"]

# In the order of preference: what holds a mask as it is, what holds it nearly, and what holds its box.
Kind = Literal["brush", "bitmask", "polygon", "rectangle"]
PromptKind = Literal["keypoint", "rectangle"]

# Name of the TextArea that tells an annotator why an answer is missing.
MESSAGES = "refinesam"

# The line for messages stands next to the labels, which are clicked before each prompt: above a large image it would be
# scrolled out of sight. Label Studio shows nothing of a backend that is down, so its empty line says what that means.
_EXAMPLE = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <TextArea name="refinesam" toName="image" rows="1" editable="false"
            placeholder="Says why an answer is missing. No answer and no reason: the model's server is not running."/>
  <{output} name="{name}" toName="image"{smart}>
    <Label value="Object" background="#1f77b4"/>
    <Label value="Other" background="#ff7f0e"/>
  </{output}>
  <KeyPointLabels name="point" toName="image" smart="true">
    <Label value="Object" background="#1f77b4"/>
    <Label value="Other" background="#ff7f0e"/>
  </KeyPointLabels>{box}
</View>
"""
_SMART_BOX = """
  <RectangleLabels name="box" toName="image" smart="true">
    <Label value="Object" background="#1f77b4"/>
    <Label value="Other" background="#ff7f0e"/>
  </RectangleLabels>"""

# Ready to paste into a project's settings; labeling_configs/*.xml hold the same.
EXAMPLES: dict[str, str] = {
    "brush": _EXAMPLE.format(output="BrushLabels", name="mask", smart="", box=_SMART_BOX),
    "polygon": _EXAMPLE.format(output="PolygonLabels", name="mask", smart="", box=_SMART_BOX),
    "bitmask": _EXAMPLE.format(output="BitmaskLabels", name="mask", smart="", box=_SMART_BOX),
    "box": _EXAMPLE.format(output="RectangleLabels", name="box", smart=' smart="true"', box=""),
}


@dataclass(frozen=True)
class ImageTag:
    """An image of the task.

    Attributes:
        name: of the tag; what other tags call `toName`.
        variable: where the image stands in the task's data: "image" for value="$image", "meta.urls[0]" for what is
            deeper.
    """

    name: str
    variable: str

    def value_in(self, data: object) -> Any:
        """Return what a task's data says of the image, None if nothing: by the whole variable, else step by step."""
        if isinstance(data, Mapping) and self.variable in data:
            return data[self.variable]
        for step in re.findall(r"[^.\[\]]+", self.variable):
            if isinstance(data, Mapping):
                data = data.get(step)
            elif isinstance(data, list) and step.isdecimal() and int(step) < len(data):
                data = data[int(step)]
            else:
                return None
        return data


@dataclass(frozen=True)
class OutputTag:
    """A tag that takes masks, or boxes of them.

    Attributes:
        kind: what its regions hold.
        from_name: name of the tag.
        to_name: name of its image.
        labels: what its regions can be called, aliases where labels have them; empty for a tag without labels.
        smart: whether it is a smart tag, too.
        labels_from: name of the separate Labels tag that the labels stand in, None when they stand in the tag itself.
        any_label: whether the labels come with each task, so that any is possible.
    """

    kind: Kind
    from_name: str
    to_name: str
    labels: tuple[str, ...]
    smart: bool = False
    labels_from: str | None = None
    any_label: bool = False

    @property
    def type(self) -> str:
        """The `type` of its regions, which is also the key of the labels in their value."""
        own_labels = self.labels_from is None and (self.labels or self.any_label)
        return f"{self.kind}labels" if own_labels else self.kind

    def takes(self, label: str | None) -> bool:
        """Whether a region of the tag can have this label; None means a region without one."""
        if label is None:
            return not (self.labels or self.any_label)
        return self.any_label or label in self.labels


@dataclass(frozen=True)
class PromptTag:
    """A smart tag: drawing with it asks for a mask.

    Attributes:
        kind: what is drawn.
        from_name: name of the tag.
        to_name: name of its image.
        labels: of the tag itself; empty where a separate Labels tag has them.
    """

    kind: PromptKind
    from_name: str
    to_name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelingConfig:
    """A labeling config, as far as it is about images.

    Attributes:
        images: at least one.
        outputs: at least one, in the order of `Kind`, then of the config.
        prompts: the smart tags; without any, only batches of tasks can be answered.
        messages: the image of a TextArea named "refinesam", where an annotator is told why an answer is missing.
        unanswered: images that are not answered, and why, in words.
    """

    images: tuple[ImageTag, ...]
    outputs: tuple[OutputTag, ...]
    prompts: tuple[PromptTag, ...] = ()
    messages: str | None = None
    unanswered: tuple[str, ...] = ()

    @classmethod
    def parse(cls, xml: str) -> LabelingConfig:
        """Read a project's labeling config.

        Raises:
            ConfigError: not XML, or without an image or a tag that takes masks.
        """
        root = _root(xml)
        repeated = {
            element for repeater in root.iter() if _Tag(repeater).kind == "repeater" for element in repeater.iter()
        }
        tags = [_Tag(element) for element in root.iter() if element not in repeated]
        unanswered = tuple(_unanswered(tags, [_Tag(element) for element in repeated]))
        # Pictures with a fixed address are decoration.
        variables = [(tag, tag.attributes.get("value", "")) for tag in tags if tag.kind == "image" and not tag.is_list]
        images = tuple(ImageTag(tag.needed("name"), value[1:]) for tag, value in variables if value[:1] == "$")
        if not images:
            raise ConfigError(
                " ".join(unanswered)
                or "The labeling config has no <Image> tag that names a variable of the task: add one, as in "
                '<Image name="image" value="$image"/>.'
            )
        names = {image.name for image in images}
        prompts = tuple(prompt for tag in tags for prompt in _prompts(tag, names))
        tags_for_masks = [output for tag in tags for output in _outputs(tag, tags, names)]
        with_masks = {output.to_name for output in tags_for_masks if output.kind != "rectangle"}
        # A smart box next to masks is there to ask for them.
        outputs = [
            tag for tag in tags_for_masks if not (tag.kind == "rectangle" and tag.smart and tag.to_name in with_masks)
        ]
        if not outputs:
            raise ConfigError(
                f"The labeling config has no tag that takes masks of {_quoted(names)}: add one, as in "
                f'<BrushLabels name="mask" toName="{images[0].name}"><Label value="Object"/></BrushLabels>; '
                "PolygonLabels, BitmaskLabels and RectangleLabels are answered, too."
            )
        areas = [tag for tag in tags if tag.kind == "textarea" and tag.attributes.get("name") == MESSAGES]
        messages = next((name for tag in areas for name in tag.images(names)), None)
        return cls(
            images,
            tuple(sorted(outputs, key=lambda tag: get_args(Kind).index(tag.kind))),
            prompts,
            messages,
            unanswered,
        )

    def output_for(self, label: str | None, preferred: Kind | None = None, to_name: str | None = None) -> OutputTag:
        """Return the tag whose region answers a prompt.

        Args:
            label: the prompt's; None takes the first tag of the preferred kind, whatever its labels.
            preferred: kind to choose where several tags have the label; None means brush, then bitmask, polygon and
                rectangle.
            to_name: name of the prompt's image; None means any.

        Raises:
            ConfigError: no tag of that image has the label.
        """
        of_image = [tag for tag in self.outputs if to_name in (None, tag.to_name)]
        fitting = [tag for tag in of_image if label is None or tag.takes(label)]
        # A tag without labels takes the mask where none with labels knows this one.
        fitting = fitting or [tag for tag in of_image if tag.takes(None)]
        if not fitting:
            known = {name for tag in of_image for name in tag.labels}
            where = f" of image {to_name!r}" if to_name is not None else ""
            raise ConfigError(
                f"No tag that takes masks{where} has the label {label!r}, only {_quoted(known)}: add "
                f'<Label value="{label}"/> to it in the labeling config.'
            )
        return next((tag for tag in fitting if tag.kind == preferred), fitting[0])

    def label_for(self, class_name: str | None, to_name: str, default: str | None) -> str | None:
        """Return what an object is called here that has a class elsewhere.

        Args:
            class_name: its label is that of the same name, whatever the case where only one is so alike.
            to_name: name of its image.
            default: of objects without a class; without it they get the only label that there is.

        Raises:
            ConfigError: several labels, and nothing says which.
        """
        known = list(dict.fromkeys(name for tag in self.outputs if tag.to_name == to_name for name in tag.labels))
        if class_name is not None:
            alike = [name for name in known if name.casefold() == class_name.casefold()]
            return alike[0] if class_name not in known and len(alike) == 1 else class_name
        if default is None and len(known) > 1:
            raise ConfigError(
                f"An object has no class, and the labeling config has {len(known)} labels: say in the extra params "
                f'which is meant, as in {{"label": "{known[0]}"}}.'
            )
        return default or next(iter(known), None)


class _Tag:
    """One element, its name and attributes in lower case."""

    def __init__(self, element: Element) -> None:
        self.name = str(element.tag)
        self.attributes = {key.lower(): value.strip() for key, value in element.attrib.items()}
        self.element = element
        lower = self.name.lower()
        self.has_labels = lower.endswith("labels")
        self.kind = lower.removesuffix("labels") if lower != "labels" else lower

    def needed(self, attribute: str) -> str:
        value = self.attributes.get(attribute.lower())
        if not value:
            raise ConfigError(f'<{self.name}> has no {attribute}: add it, as in <{self.name} {attribute}="...">.')
        return value

    def images(self, names: set[str]) -> list[str]:
        targets = [name.strip() for name in self.attributes.get("toname", "").split(",")]
        return [name for name in targets if name in names]

    @property
    def smart(self) -> bool:
        return "true" in (self.attributes.get("smart", "").lower(), self.attributes.get("smartonly", "").lower())

    @property
    def is_list(self) -> bool:
        return "valuelist" in self.attributes

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels below; an alias stands for its label in results."""
        below = [_Tag(element) for element in self.element.iter()]
        names = [tag.attributes.get("alias") or tag.attributes.get("value", "") for tag in below if tag.kind == "label"]
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def any_label(self) -> bool:
        return self.attributes.get("value", "").startswith("$")


def _root(xml: str) -> Element:
    try:
        root: Element = ElementTree.fromstring(xml)
    except (ParseError, DefusedXmlException, TypeError, ValueError) as error:
        raise ConfigError(
            f"The labeling config is not XML that can be read ({error}), it starts with {repr(xml)[:60]}: save it "
            "again in the project's settings, under Labeling Interface."
        ) from error
    return root


def _unanswered(tags: list[_Tag], repeated: list[_Tag]) -> Iterator[str]:
    """Say which images aren't answered: regions of theirs belong to a page, or to tags that each task has others of."""
    lists = [tag.needed("name") for tag in tags if tag.kind == "image" and tag.is_list]
    for names, of in ((lists, "valueList"), ([t.needed("name") for t in repeated if t.kind == "image"], "<Repeater>")):
        if names:
            yield (
                f"{', '.join(map(repr, sorted(names)))} {'is' if len(names) == 1 else 'are'} shown by {of}, several "
                'images a task, which is not answered: make a task of each image, with <Image name="image" '
                'value="$image"/>.'
            )


def _prompts(tag: _Tag, names: set[str]) -> Iterator[PromptTag]:
    for kind in get_args(PromptKind):
        if tag.kind == kind and tag.smart:
            for to_name in tag.images(names):
                yield PromptTag(kind, tag.needed("name"), to_name, tag.labels if tag.has_labels else ())


def _outputs(tag: _Tag, tags: list[_Tag], names: set[str]) -> Iterator[OutputTag]:
    """Yield a tag's outputs: one for each image and, where labels stand in tags of their own, for each of these."""
    for kind in get_args(Kind):
        for to_name in tag.images(names) if tag.kind == kind else []:
            plain = OutputTag(kind, tag.needed("name"), to_name, (), tag.smart)
            separate = [other for other in tags if other.kind == "labels" and to_name in other.images(names)]
            if tag.has_labels:
                yield replace(plain, labels=_some_labels(tag), any_label=tag.any_label)
            elif not separate:
                yield plain
            else:
                for other in separate:
                    yield replace(
                        plain, labels=_some_labels(other), any_label=other.any_label, labels_from=other.needed("name")
                    )


def _some_labels(tag: _Tag) -> tuple[str, ...]:
    labels = tag.labels
    if not labels and not tag.any_label:
        raise ConfigError(
            f'<{tag.name} name="{tag.needed("name")}"> has no labels: add one inside, as in <Label value="Object"/>.'
        )
    return labels


def _quoted(names: set[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"
