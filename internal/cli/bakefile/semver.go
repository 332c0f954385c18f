package bakefile

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
)

// version is a semantic version. Parts that are left out are 0.
type version struct {
	parts [3]uint64
	given int // parts before the first one that is left out or a wildcard
	pre   string
}

// parseVersion reads [v]MAJOR[.MINOR[.PATCH]][-PRE][+BUILD]. Of a constraint, parts may be wildcards.
func parseVersion(s string, constraint bool) (v version, err error) {
	wrong := errs.New(errs.Invalid, "invalid semantic version %q", s)
	rest, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "+")
	rest, pre, has := strings.Cut(rest, "-")
	if has && pre == "" {
		return v, wrong
	}
	v.pre = pre
	parts := strings.Split(rest, ".")
	if len(parts) > 3 {
		return v, wrong
	}
	for i, p := range parts {
		if constraint && (p == "x" || p == "X" || p == "*") {
			return v, nil
		}
		if v.parts[i], err = strconv.ParseUint(p, 10, 64); err != nil {
			return v, wrong
		}
		v.given++
	}
	return v, nil
}

func (v version) compare(o version) int {
	if c := slices.Compare(v.parts[:], o.parts[:]); c != 0 {
		return c
	}
	switch {
	case v.pre == o.pre:
		return 0
	case v.pre == "":
		return 1
	case o.pre == "":
		return -1
	}
	return slices.CompareFunc(strings.Split(v.pre, "."), strings.Split(o.pre, "."), func(a, b string) int {
		m, errA := strconv.ParseUint(a, 10, 64)
		n, errB := strconv.ParseUint(b, 10, 64)
		switch {
		case errA == nil && errB == nil:
			return cmp.Compare(m, n)
		case errA == nil:
			return -1
		case errB == nil:
			return 1
		}
		return strings.Compare(a, b)
	})
}

// next returns the first version above all that have the same parts up to at.
func (v version) next(at int) version {
	out := version{parts: v.parts, given: 3}
	for i := at + 1; i < 3; i++ {
		out.parts[i] = 0
	}
	out.parts[at]++
	return out
}

// satisfies reports whether a version satisfies a constraint: comparisons that are joined by commas or spaces, alternatives by ||, ranges A - B, ~ and ^, and wildcards.
// A version before its release only satisfies constraints that name one.
func satisfies(text, constraint string) (bool, error) {
	v, err := parseVersion(text, false)
	if err != nil {
		return false, err
	}
	found := false
	for alternative := range strings.SplitSeq(constraint, "||") {
		ok, err := all(v, alternative)
		if err != nil {
			return false, err
		}
		found = found || ok
	}
	return found, nil
}

// all reports whether a version satisfies constraints that are joined.
func all(v version, text string) (bool, error) {
	fields := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' })
	if len(fields) == 0 {
		return false, errs.New(errs.Invalid, "improper constraint: %s", text)
	}
	ok := true
	for i := 0; i < len(fields); i++ {
		op := fields[i][:len(fields[i])-len(strings.TrimLeft(fields[i], "=!<>~^"))]
		operand := fields[i][len(op):]
		if operand == "" && i+1 < len(fields) { // a space after the operator
			i++
			operand = fields[i]
		}
		if i+2 < len(fields) && fields[i+1] == "-" {
			high, err := one(v, "<=", fields[i+2])
			if err != nil {
				return false, err
			}
			ok = ok && high
			op = ">="
			i += 2
		}
		fits, err := one(v, op, operand)
		if err != nil {
			return false, err
		}
		ok = ok && fits
	}
	return ok, nil
}

// one reports whether a version satisfies one comparison.
func one(v version, op, operand string) (bool, error) {
	c, err := parseVersion(operand, true)
	if err != nil {
		return false, err
	}
	if v.pre != "" && c.pre == "" && op != "!=" {
		return false, nil
	}
	order := v.compare(c)
	above := func(at int) bool { return order >= 0 && v.compare(c.next(at)) < 0 }
	switch op {
	case "", "=", "==":
		if c.given == 0 {
			return true, nil
		}
		if c.given < 3 {
			return above(c.given - 1), nil
		}
		return order == 0, nil
	case "!=":
		if c.given == 0 {
			return false, nil
		}
		if c.given < 3 {
			return !above(c.given - 1), nil
		}
		return order != 0, nil
	case ">":
		if c.given > 0 && c.given < 3 {
			return v.compare(c.next(c.given-1)) >= 0, nil
		}
		return order > 0, nil
	case "<":
		return order < 0, nil
	case ">=", "=>":
		return order >= 0, nil
	case "<=", "=<":
		if c.given > 0 && c.given < 3 {
			return v.compare(c.next(c.given-1)) < 0, nil
		}
		return order <= 0 || c.given == 0, nil
	case "~", "~>":
		if c.given == 0 {
			return true, nil
		}
		return above(min(c.given-1, 1)), nil
	case "^":
		if c.given == 0 {
			return true, nil
		}
		at := 0
		for at < c.given-1 && c.parts[at] == 0 {
			at++
		}
		return above(at), nil
	}
	return false, errs.New(errs.Invalid, "improper constraint: %s%s", op, operand)
}
