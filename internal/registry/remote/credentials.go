package remote

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"ply/internal/durable"
	"ply/internal/errs"
)

const maxCredentials = 1 << 20 // bytes of the file

// Accounts are credentials by the host that they are for, with its port.
type Accounts map[string]Credentials

// ReadAccounts reads a file in the form of docker's config.json.
func ReadAccounts(name string) (Accounts, error) {
	b, err := durable.ReadFile(durable.OS, name, maxCredentials)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			Username      string `json:"username"`
			Password      string `json:"password"`
			IdentityToken string `json:"identitytoken"`
		} `json:"auths"`
		CredHelpers map[string]string `json:"credHelpers"`
		CredsStore  string            `json:"credsStore"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, errs.New(errs.Invalid, "%s: is not in the form of docker's config.json", name)
	}
	if doc.CredsStore != "" || len(doc.CredHelpers) > 0 {
		return nil, errs.New(errs.Invalid, "%s: names credential helpers, which the registry does not run", name).WithHint("Write the accounts into auths.")
	}
	a := Accounts{}
	for key, v := range doc.Auths {
		c := Credentials{Username: v.Username, Password: v.Password, IdentityToken: v.IdentityToken}
		if v.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(v.Auth)
			user, password, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
			if err != nil || !ok {
				return nil, errs.New(errs.Invalid, "%s: auth of %q is not USER:PASSWORD in base64", name, clip(key))
			}
			c.Username, c.Password = user, password
		}
		a[hostOf(key)] = c
	}
	return a, nil
}

// For returns the credentials for the host of a registry's address.
func (a Accounts) For(address string) Credentials { return a[hostOf(address)] }

// hubHosts are names of Docker Hub, which has one set of accounts.
var hubHosts = map[string]bool{"docker.io": true, "index.docker.io": true, "registry-1.docker.io": true, "registry.hub.docker.com": true}

// IsHub reports whether an address is that of Docker Hub.
func IsHub(address string) bool { return hostOf(address) == "docker.io" }

// hostOf returns the host of an address, with its port, in one spelling.
func hostOf(s string) string {
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
	}
	s, _, _ = strings.Cut(s, "/")
	if s = strings.ToLower(s); hubHosts[s] {
		return "docker.io"
	}
	return s
}
