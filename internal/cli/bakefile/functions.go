package bakefile

import (
	"maps"
	"math/big"
	"os"
	"path"
	"strconv"
	"time"

	"github.com/hashicorp/go-cty-funcs/cidr"
	"github.com/hashicorp/go-cty-funcs/crypto"
	"github.com/hashicorp/go-cty-funcs/encoding"
	"github.com/hashicorp/go-cty-funcs/uuid"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"

	"ply/internal/errs"
)

// functions are those that expressions can use. Their names are buildx's.
func functions() map[string]function.Function { return maps.Clone(library) }

var library = map[string]function.Function{
	"absolute": stdlib.AbsoluteFunc, "add": stdlib.AddFunc, "and": stdlib.AndFunc, "byteslen": stdlib.BytesLenFunc, "bytesslice": stdlib.BytesSliceFunc,
	"ceil": stdlib.CeilFunc, "chomp": stdlib.ChompFunc, "chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc,
	"compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc, "csvdecode": stdlib.CSVDecodeFunc, "distinct": stdlib.DistinctFunc,
	"divide": stdlib.DivideFunc, "element": stdlib.ElementFunc, "equal": stdlib.EqualFunc, "flatten": stdlib.FlattenFunc, "floor": stdlib.FloorFunc, "format": stdlib.FormatFunc,
	"formatdate": stdlib.FormatDateFunc, "formatlist": stdlib.FormatListFunc, "greaterthan": stdlib.GreaterThanFunc, "greaterthanorequalto": stdlib.GreaterThanOrEqualToFunc,
	"hasindex": stdlib.HasIndexFunc, "indent": stdlib.IndentFunc, "index": stdlib.IndexFunc, "int": stdlib.IntFunc, "join": stdlib.JoinFunc, "jsondecode": stdlib.JSONDecodeFunc,
	"jsonencode": stdlib.JSONEncodeFunc, "keys": stdlib.KeysFunc, "length": stdlib.LengthFunc, "lessthan": stdlib.LessThanFunc, "lessthanorequalto": stdlib.LessThanOrEqualToFunc,
	"log": stdlib.LogFunc, "lookup": stdlib.LookupFunc, "lower": stdlib.LowerFunc, "max": stdlib.MaxFunc, "merge": stdlib.MergeFunc, "min": stdlib.MinFunc, "modulo": stdlib.ModuloFunc,
	"multiply": stdlib.MultiplyFunc, "negate": stdlib.NegateFunc, "not": stdlib.NotFunc, "notequal": stdlib.NotEqualFunc, "or": stdlib.OrFunc, "parseint": stdlib.ParseIntFunc,
	"pow": stdlib.PowFunc, "range": stdlib.RangeFunc, "regex": stdlib.RegexFunc, "regex_replace": stdlib.RegexReplaceFunc, "regexall": stdlib.RegexAllFunc, "replace": stdlib.ReplaceFunc,
	"reverse": stdlib.ReverseFunc, "reverselist": stdlib.ReverseListFunc, "sethaselement": stdlib.SetHasElementFunc, "setintersection": stdlib.SetIntersectionFunc,
	"setproduct": stdlib.SetProductFunc, "setsubtract": stdlib.SetSubtractFunc, "setsymmetricdifference": stdlib.SetSymmetricDifferenceFunc, "setunion": stdlib.SetUnionFunc,
	"signum": stdlib.SignumFunc, "slice": stdlib.SliceFunc, "sort": stdlib.SortFunc, "split": stdlib.SplitFunc, "strlen": stdlib.StrlenFunc, "substr": stdlib.SubstrFunc,
	"subtract": stdlib.SubtractFunc, "timeadd": stdlib.TimeAddFunc, "title": stdlib.TitleFunc, "trim": stdlib.TrimFunc, "trimprefix": stdlib.TrimPrefixFunc,
	"trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc, "upper": stdlib.UpperFunc, "values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,

	"base64decode": encoding.Base64DecodeFunc, "base64encode": encoding.Base64EncodeFunc, "bcrypt": crypto.BcryptFunc, "can": tryfunc.CanFunc, "cidrhost": cidr.HostFunc,
	"cidrnetmask": cidr.NetmaskFunc, "cidrsubnet": cidr.SubnetFunc, "cidrsubnets": cidr.SubnetsFunc, "convert": typeexpr.ConvertFunc, "md5": crypto.Md5Func,
	"rsadecrypt": crypto.RsaDecryptFunc, "sha1": crypto.Sha1Func, "sha256": crypto.Sha256Func, "sha512": crypto.Sha512Func, "try": tryfunc.TryFunc,
	"urlencode": encoding.URLEncodeFunc, "uuidv4": uuid.V4Func, "uuidv5": uuid.V5Func,

	"basename": words(func(s string) (string, error) { return path.Base(s), nil }),
	"dirname":  words(func(s string) (string, error) { return path.Dir(s), nil }),
	"sanitize": words(func(s string) (string, error) { return sanitize(s), nil }),
	"timestamp": function.New(&function.Spec{Type: function.StaticReturnType(cty.String), Impl: func([]cty.Value, cty.Type) (cty.Value, error) {
		return cty.StringVal(time.Now().UTC().Format(time.RFC3339)), nil
	}}),
	"homedir": function.New(&function.Spec{Type: function.StaticReturnType(cty.String), Impl: func([]cty.Value, cty.Type) (cty.Value, error) {
		dir, err := os.UserHomeDir()
		return cty.StringVal(dir), err
	}}),
	"indexof": function.New(&function.Spec{
		Params: []function.Parameter{{Name: "list", Type: cty.DynamicPseudoType}, {Name: "value", Type: cty.DynamicPseudoType}}, Type: function.StaticReturnType(cty.Number), Impl: indexOf,
	}),
	"formattimestamp": function.New(&function.Spec{
		Params: []function.Parameter{{Name: "format", Type: cty.String}, {Name: "time", Type: cty.DynamicPseudoType}}, Type: function.StaticReturnType(cty.String), Impl: formatTimestamp,
	}),
	"unixtimestampparse": function.New(&function.Spec{
		Params: []function.Parameter{{Name: "unix_timestamp", Type: cty.Number}}, Type: function.StaticReturnType(momentType), Impl: parseTimestamp,
	}),
	"semvercmp": function.New(&function.Spec{
		Params: []function.Parameter{{Name: "version", Type: cty.String}, {Name: "constraint", Type: cty.String}}, Type: function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			ok, err := satisfies(args[0].AsString(), args[1].AsString())
			return cty.BoolVal(ok), err
		},
	}),
}

func indexOf(args []cty.Value, _ cty.Type) (cty.Value, error) {
	if t := args[0].Type(); !t.IsListType() && !t.IsTupleType() {
		return cty.NilVal, errs.New(errs.Invalid, "argument must be a list or tuple")
	}
	for it := args[0].ElementIterator(); it.Next(); {
		i, v := it.Element()
		if same, err := stdlib.Equal(v, args[1]); err == nil && same.IsKnown() && same.True() {
			return i, nil
		}
	}
	return cty.NilVal, errs.New(errs.NotFound, "item not found")
}

// moment returns the time of a number of seconds.
func moment(v cty.Value) (time.Time, error) {
	n, exact := v.AsBigFloat().Int64()
	if exact != big.Exact {
		return time.Time{}, errs.New(errs.Invalid, "unix timestamp must be an integer")
	}
	return time.Unix(n, 0).UTC(), nil
}

// formatTimestamp formats a time, which is text or a number of seconds. The format "X" is that number.
func formatTimestamp(args []cty.Value, _ cty.Type) (cty.Value, error) {
	var t time.Time
	var err error
	switch args[1].Type() {
	case cty.String:
		t, err = time.Parse(time.RFC3339, args[1].AsString())
	case cty.Number:
		t, err = moment(args[1])
	default:
		err = errs.New(errs.Invalid, "must be a string timestamp or a unix timestamp number")
	}
	if err != nil {
		return cty.NilVal, err
	}
	if args[0].AsString() == "X" {
		return cty.StringVal(strconv.FormatInt(t.Unix(), 10)), nil
	}
	return stdlib.FormatDate(args[0], cty.StringVal(t.Format(time.RFC3339)))
}

var momentType = cty.Object(map[string]cty.Type{
	"year": cty.Number, "year_day": cty.Number, "day": cty.Number, "month": cty.Number, "month_name": cty.String, "weekday": cty.Number, "weekday_name": cty.String,
	"hour": cty.Number, "minute": cty.Number, "second": cty.Number, "rfc3339": cty.String, "iso_year": cty.Number, "iso_week": cty.Number,
})

func parseTimestamp(args []cty.Value, _ cty.Type) (cty.Value, error) {
	t, err := moment(args[0])
	if err != nil {
		return cty.NilVal, err
	}
	number := func(n int) cty.Value { return cty.NumberIntVal(int64(n)) }
	year, week := t.ISOWeek()
	return cty.ObjectVal(map[string]cty.Value{
		"year": number(t.Year()), "year_day": number(t.YearDay()), "day": number(t.Day()), "month": number(int(t.Month())), "month_name": cty.StringVal(t.Month().String()),
		"weekday": number(int(t.Weekday())), "weekday_name": cty.StringVal(t.Weekday().String()), "hour": number(t.Hour()), "minute": number(t.Minute()), "second": number(t.Second()),
		"rfc3339": cty.StringVal(t.Format(time.RFC3339)), "iso_year": number(year), "iso_week": number(week),
	}), nil
}

// words makes a function of a string.
func words(f func(string) (string, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "text", Type: cty.String}}, Type: function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			out, err := f(args[0].AsString())
			if err != nil {
				return cty.NilVal, err
			}
			return cty.StringVal(out), nil
		},
	})
}

// sanitize replaces what the name of a target cannot have.
func sanitize(s string) string {
	out := []rune(s)
	for i, r := range out {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-') {
			out[i] = '_'
		}
	}
	return string(out)
}
