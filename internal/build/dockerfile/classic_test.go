package dockerfile_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/build/dockerfile"
	"ply/internal/errs"
)

func TestParseClassic(t *testing.T) {
	for name, c := range map[string]struct {
		query string
		want  dockerfile.Classic
	}{
		"nothing": {"", dockerfile.Classic{Remove: true, Request: dockerfile.Request{Options: map[string]string{"dockerfilekey": "context"}}}},
		"docker build": {
			`t=a:1&t=b&dockerfile=sub/Dockerfile&rm=1&forcerm=1&q=1&nocache=1&pull=1&target=x&platform=linux/arm64&squash=1&version=1` +
				`&buildargs={"A":"1","B":null,"C":""}&labels={"l":"v"}&cachefrom=["x","y"]&networkmode=default&shmsize=1024&memory=0&memswap=-1` +
				`&cpusetcpus=0&cgroupparent=/p&ulimits=[{"Name":"nofile","Soft":1,"Hard":2},{"Name":"core","Soft":-1,"Hard":-1}]&cpuquota=5` +
				`&extrahosts=a:10.0.0.1&extrahosts=gw:host-gateway&extrahosts=six:[::1]&extrahosts=eq=10.0.0.2`,
			dockerfile.Classic{
				Tags: []string{"a:1", "b"}, Quiet: true, Remove: true, ForceRemove: true, Squash: true, Version: "1",
				Request: dockerfile.Request{Options: map[string]string{
					"dockerfilekey": "context", "filename": "sub/Dockerfile", "no-cache": "", "image-resolve-mode": "pull", "target": "x",
					"platform": "linux/arm64", "build-arg:A": "1", "build-arg:C": "", "label:l": "v", "cache-from": "x,y", "shm-size": "1024",
					"memswap": "-1", "cpusetcpus": "0", "cgroup-parent": "/p", "ulimit": "nofile=1:2,core=-1:-1", "cpuquota": "5",
					"add-hosts": "a=10.0.0.1,gw=172.17.0.1,six=::1,eq=10.0.0.2",
				}},
			},
		},
		"flags off": {"rm=0&q=false&nocache=0&pull=none&networkmode=host", dockerfile.Classic{Request: dockerfile.Request{Options: map[string]string{
			"dockerfilekey": "context", "force-network-mode": "host",
		}}}},
		"network": {"networkmode=mine", dockerfile.Classic{Remove: true, Network: "mine", Request: dockerfile.Request{Options: map[string]string{"dockerfilekey": "context"}}}},
		"remote": {"remote=https://example.com/x.git", dockerfile.Classic{Remove: true, Remote: "https://example.com/x.git",
			Request: dockerfile.Request{Options: map[string]string{"context": "https://example.com/x.git"}}}},
		"session": {`remote=client-session&session=s&buildid=b&version=2&outputs=[{"Type":"local","Attrs":{"dest":"/x"}}]&extrahosts=["a:10.0.0.1"]`,
			dockerfile.Classic{
				Remove: true, Remote: dockerfile.ClientSession, Session: "s", BuildID: "b", Version: "2",
				Outputs: []dockerfile.ClassicOutput{{Type: "local", Attrs: map[string]string{"dest": "/x"}}},
				Request: dockerfile.Request{SessionID: "s", Options: map[string]string{"add-hosts": "a=10.0.0.1"}},
			}},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := url.ParseQuery(c.query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := dockerfile.ParseClassic(q, "172.17.0.1")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&c.want, got); d != "" {
				t.Error(d)
			}
			if c.want.Remote != "" {
				return
			}
			s := &solver{locals: map[string]map[string]string{"context": {
				"Dockerfile": "FROM alpine AS x\nRUN true\n", "sub/Dockerfile": "FROM alpine AS x\nRUN true\n",
			}}, images: map[string]string{"docker.io/library/alpine:latest": ""}}
			if _, err := dockerfile.Build(t.Context(), got.Request, s); err != nil {
				t.Errorf("the front end refuses the options: %v", err)
			}
		})
	}
	for query, want := range map[string]string{
		"buildargs=x": "buildargs", "labels=[1]": "labels", "cachefrom={}": "cachefrom", "ulimits=1": "ulimits", "outputs=1": "outputs",
		"platform=a/b/c/d": "platform", "networkmode=container:c": "network of a container", "memory=x": "memory=x", "memory=-1": "memory=-1",
		"shmsize=-5": "shmsize", "extrahosts=nothing": "extra host", "extrahosts=a:b": "extra host", "extrahosts=a,b:1.2.3.4": "extra host",
		`ulimits=[{"Name":"a=b"}]`: "ulimit", "securityopt=x": "securityopt", "isolation=hyperv": "isolation",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		_, err = dockerfile.ParseClassic(q, "")
		if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Unimplemented) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", query, err, want)
		}
	}
	if _, err := dockerfile.ParseClassic(url.Values{"extrahosts": {"a:host-gateway"}}, ""); !errors.Is(err, errs.Invalid) {
		t.Errorf("host-gateway without a gateway: %v", err)
	}
}
