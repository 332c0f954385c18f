package command

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"

	"ply/internal/cli/config"
	"ply/internal/wire"
)

// AuthHeader returns X-Registry-Auth with the credentials for a registry; domain is the one of a reference.
func (inv *Invocation) AuthHeader(ctx context.Context, domain string) http.Header {
	b, err := json.Marshal(inv.Auth(ctx, domain))
	if err != nil {
		return nil
	}
	return http.Header{"X-Registry-Auth": {base64.URLEncoding.EncodeToString(b)}}
}

// Auth returns the stored credentials for a registry; domain is the one of a reference. Without any, only the zero value is returned.
func (inv *Invocation) Auth(ctx context.Context, domain string) wire.Auth {
	c, err := inv.Config().Get(ctx, config.Key(domain))
	if err != nil {
		fmt.Fprintf(inv.Err, "WARNING: %v\n", err)
	}
	return wire.Auth{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken, ServerAddress: c.Server}
}

// AuthConfig returns the value of X-Registry-Config: all stored credentials, by registry. A build sends them, as only the
// engine knows which registries the Dockerfile names.
func (inv *Invocation) AuthConfig(ctx context.Context) string {
	all := map[string]wire.Auth{}
	for _, key := range inv.Config().Servers() {
		c, err := inv.Config().Get(ctx, key)
		if err != nil || c.Empty() {
			continue
		}
		all[key] = wire.Auth{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, ServerAddress: key}
	}
	b, err := json.Marshal(all)
	if err != nil {
		return ""
	}
	return base64.URLEncoding.EncodeToString(b)
}
