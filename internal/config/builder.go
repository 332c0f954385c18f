package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"ply/internal/filter"
)

// Builder has the settings of builds.
type Builder struct {
	GC           BuilderGC    `json:"gc"`
	Entitlements Entitlements `json:"entitlements"`
}

// BuilderGC says what is pruned from the build cache after builds.
type BuilderGC struct {
	Enabled              *bool         `json:"enabled"` // nil = true
	DefaultKeepStorage   Size          `json:"defaultKeepStorage"`
	DefaultReservedSpace Size          `json:"defaultReservedSpace"`
	DefaultMaxUsedSpace  Size          `json:"defaultMaxUsedSpace"`
	DefaultMinFreeSpace  Size          `json:"defaultMinFreeSpace"`
	Policy               []BuilderRule `json:"policy"` // in the order in which they apply; none = one rule of the defaults
}

// BuilderRule is one rule of the policy.
type BuilderRule struct {
	All           bool       `json:"all"`
	Filter        RuleFilter `json:"filter"`
	KeepDuration  Duration   `json:"keepDuration"`
	KeepStorage   Size       `json:"keepStorage"` // the older name of reservedSpace
	ReservedSpace Size       `json:"reservedSpace"`
	MaxUsedSpace  Size       `json:"maxUsedSpace"`
	MinFreeSpace  Size       `json:"minFreeSpace"`
}

// Entitlements are what clients may ask for in builds; nil = they may.
type Entitlements struct {
	NetworkHost      *bool `json:"network-host"`
	SecurityInsecure *bool `json:"security-insecure"`
}

// RuleFilter are the filters of a rule, as a list of KEY=VALUE or as an object of keys with their values.
type RuleFilter filter.Args

// UnmarshalJSON reads both forms.
func (f *RuleFilter) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		args, err := filter.Parse(string(b))
		if err != nil {
			return errors.New("filter: want a list of KEY=VALUE, or an object with a list of values for each key")
		}
		*f = RuleFilter(args)
		return nil
	}
	*f = RuleFilter{}
	for _, text := range list {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("filter %q: want KEY=VALUE", text)
		}
		(*f)[key] = append((*f)[key], value)
	}
	return nil
}

// Duration is a time such as 48h, or a number of seconds.
type Duration time.Duration

// UnmarshalJSON reads a text or a number.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var seconds int64
	if err := json.Unmarshal(b, &seconds); err == nil {
		if seconds < 0 || seconds > 1<<31 {
			return fmt.Errorf("%d is not a duration in seconds", seconds)
		}
		*d = Duration(time.Duration(seconds) * time.Second)
		return nil
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("%s is not a duration: want a text such as \"48h\"", b)
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration: want a text such as \"48h\"", text)
	}
	*d = Duration(v)
	return nil
}
