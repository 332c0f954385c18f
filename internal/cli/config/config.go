// Package config reads and writes the client's config.json: credentials, credential helpers, default formats, headers and proxies. When
// it writes the file, it keeps the keys that it does not know.
package config

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"ply/internal/errs"
)

// Hub is the key of Docker Hub's credentials; HubDomain is its domain in references.
const (
	Hub       = "https://index.docker.io/v1/"
	HubDomain = "docker.io"
)

// File is config.json.
type File struct {
	Path  string
	known known
	rest  map[string]json.RawMessage
}

// known are the keys that ply reads.
type known struct {
	Auths          map[string]auth              `json:"auths,omitempty"`
	HTTPHeaders    map[string]string            `json:"HttpHeaders,omitempty"`
	CredsStore     string                       `json:"credsStore,omitempty"`
	CredHelpers    map[string]string            `json:"credHelpers,omitempty"`
	DetachKeys     string                       `json:"detachKeys,omitempty"`
	PsFormat       string                       `json:"psFormat,omitempty"`
	ImagesFormat   string                       `json:"imagesFormat,omitempty"`
	NetworksFormat string                       `json:"networksFormat,omitempty"`
	VolumesFormat  string                       `json:"volumesFormat,omitempty"`
	StatsFormat    string                       `json:"statsFormat,omitempty"`
	CurrentContext string                       `json:"currentContext,omitempty"`
	Proxies        map[string]map[string]string `json:"proxies,omitempty"`
}

// auth is the entry of one registry.
type auth struct {
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// Dir returns the directory of config.json: DOCKER_CONFIG, or ~/.docker.
func Dir() string {
	if d := os.Getenv("DOCKER_CONFIG"); d != "" {
		return d
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	return filepath.Join(home, ".docker")
}

// Load reads the config.json of dir. A missing file is an empty configuration. The File is never nil: with an error, it is empty or
// incomplete.
func Load(dir string) (*File, error) {
	f := &File{Path: filepath.Join(dir, "config.json")}
	b, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, errs.New(errs.Invalid, "%s: %w", f.Path, err)
	}
	if err := json.Unmarshal(b, &f.known); err != nil {
		return f, errs.New(errs.Invalid, "%s: %w", f.Path, err)
	}
	if err := json.Unmarshal(b, &f.rest); err != nil {
		return f, errs.New(errs.Invalid, "%s: %w", f.Path, err)
	}
	return f, nil
}

// DetachKeys returns the user's default for --detach-keys.
func (f *File) DetachKeys() string { return f.known.DetachKeys }

// Format returns the user's default for --format of "ps", "images", "networks", "volumes" or "stats".
func (f *File) Format(what string) string {
	switch what {
	case "ps":
		return f.known.PsFormat
	case "images":
		return f.known.ImagesFormat
	case "networks":
		return f.known.NetworksFormat
	case "volumes":
		return f.known.VolumesFormat
	case "stats":
		return f.known.StatsFormat
	}
	return ""
}

// CurrentContext returns the name of the context in use; "" = none.
func (f *File) CurrentContext() string { return f.known.CurrentContext }

// UseContext records the context in use; "" = none.
func (f *File) UseContext(name string) error {
	f.known.CurrentContext = name
	return f.save()
}

// Headers returns the headers to send with every request.
func (f *File) Headers() map[string]string { return f.known.HTTPHeaders }

// ProxyEnv returns the proxy variables for the containers of an engine, each in upper and lower case.
func (f *File) ProxyEnv(host string) map[string]string {
	p, ok := f.known.Proxies[host]
	if !ok {
		p = f.known.Proxies["default"]
	}
	env := map[string]string{}
	for key, name := range map[string]string{"httpProxy": "HTTP_PROXY", "httpsProxy": "HTTPS_PROXY", "noProxy": "NO_PROXY", "ftpProxy": "FTP_PROXY", "allProxy": "ALL_PROXY"} {
		if v := p[key]; v != "" {
			env[name], env[strings.ToLower(name)] = v, v
		}
	}
	return env
}

// save writes the file with mode 0600. It renames a temporary file over it, so that the file is never incomplete. It follows a symbolic
// link.
func (f *File) save() error {
	out := map[string]json.RawMessage{}
	for k, v := range f.rest {
		out[k] = v
	}
	b, err := json.Marshal(f.known)
	if err != nil {
		return err
	}
	var mine map[string]json.RawMessage
	if err := json.Unmarshal(b, &mine); err != nil {
		return err
	}
	delete(out, "auths")
	delete(out, "currentContext")
	for k, v := range mine {
		out[k] = v
	}
	if b, err = json.MarshalIndent(out, "", "\t"); err != nil {
		return err
	}
	path := f.Path
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".config.json")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(b); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// decodeAuth decodes name and password.
func decodeAuth(s string) (user, pass string, err error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", "", errs.New(errs.Invalid, "invalid auth configuration file: %w", err)
	}
	user, pass, ok := strings.Cut(string(b), ":")
	if !ok || user == "" {
		return "", "", errs.New(errs.Invalid, "invalid auth configuration file")
	}
	return user, strings.Trim(pass, "\x00"), nil
}
