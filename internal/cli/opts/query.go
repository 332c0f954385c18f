package opts

import (
	"encoding/json"
	"net/url"

	"ply/internal/oci"
)

// Query adds the filters to q, in the form that lists and prunes take.
func (f *Filters) Query(q url.Values) error {
	if len(*f) == 0 {
		return nil
	}
	b, err := json.Marshal(*f)
	if err != nil {
		return err
	}
	q.Set("filters", string(b))
	return nil
}

// PlatformQuery returns the parameter "platform" in the JSON form that newer endpoints take. It is empty when s is.
func PlatformQuery(s string) (url.Values, error) {
	if s == "" {
		return url.Values{}, nil
	}
	p, err := oci.ParsePlatform(s)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(map[string]string{"os": p.OS, "architecture": p.Architecture, "variant": p.Variant})
	if err != nil {
		return nil, err
	}
	return url.Values{"platform": {string(b)}}, nil
}
