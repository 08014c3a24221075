"""Reads a STIX 2.1 bundle from standard input with the reference library, which checks every object,
reference and pattern. Prints how many indicators it has."""

import json
import sys

import stix2

text = sys.stdin.read()
bundle = stix2.parse(text, version="2.1")
identities = [one for one in bundle.objects if one.type == "identity"]
indicators = [one for one in bundle.objects if one.type == "indicator"]
groupings = [one for one in bundle.objects if one.type == "grouping"]
assert isinstance(bundle, stix2.v21.Bundle), type(bundle)
assert len(identities) == 1, "one identity"
for one in indicators:
    assert isinstance(one, stix2.v21.Indicator), type(one)
    assert one.created_by_ref == identities[0].id, "told by whom"
    assert 70 <= one.confidence <= 100, one.confidence
    assert one.valid_until > one.valid_from
    # The pattern again, as the library understands it.
    stix2.Indicator(pattern=one.pattern, pattern_type="stix", valid_from=one.valid_from)
refs = {ref for one in groupings for ref in one.object_refs}
assert refs == {one.id for one in indicators}, "every indicator is in the grouping"
assert len({one["id"] for one in json.loads(text)["objects"]}) == len(bundle.objects), "unique"
print(len(indicators))
