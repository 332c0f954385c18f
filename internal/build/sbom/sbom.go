// Package sbom lists the packages in a file system as an SPDX 2.3 document: those of dpkg and apk, and those that language tools install or lock (npm, Python,
// Go programs, Cargo, Ruby, Composer). Databases of rpm are not read; a file system that has one is marked as not fully described.
//
// Invariants: the file system is hostile. What is read of it, and how many packages are believed, is bounded; a file that cannot be understood adds nothing. The same file
// system gives the same document.
package sbom

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Type is the type of the predicate.
const Type = "https://spdx.dev/Document"

// Package is a package that was found.
type Package struct {
	Kind      string // of a package URL: deb, apk, npm, pypi, golang, cargo, gem, composer
	Namespace string
	Name      string
	Version   string
	License   string    // as the package says it; "" = unknown
	Source    string    // the package that it was built from; "" = itself
	Arch      string    // "" = any
	From      string    // the file that says so
	Distro    [2]string // ID and version of the distribution
}

// url returns the package URL.
func (p *Package) url() string {
	out := "pkg:" + p.Kind + "/"
	if p.Namespace != "" {
		for part := range strings.SplitSeq(p.Namespace, "/") {
			out += escape(part) + "/"
		}
	}
	out += escape(p.Name)
	if p.Version != "" {
		out += "@" + escape(p.Version)
	}
	var q []string
	if p.Arch != "" {
		q = append(q, "arch="+url.QueryEscape(p.Arch))
	}
	if p.Distro[0] != "" && (p.Kind == "deb" || p.Kind == "apk") {
		d := p.Distro[0]
		if p.Distro[1] != "" {
			d += "-" + p.Distro[1]
		}
		q = append(q, "distro="+url.QueryEscape(d))
	}
	if p.Source != "" && p.Source != p.Name {
		q = append(q, "upstream="+url.QueryEscape(p.Source))
	}
	if len(q) > 0 {
		out += "?" + strings.Join(q, "&")
	}
	return out
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// Result is what a scan found.
type Result struct {
	Packages []Package // sorted
	Missing  []string  // what is there and was not read
}

// The bounds of a scan.
const (
	maxFile     = 64 << 20 // bytes of one file
	maxPackages = 200_000
)

// reader takes packages out of a file.
type reader struct {
	kind  string
	match func(name string) bool
	read  func(s *scan, name string, data []byte) // data is the whole file
}

// readers are those of files that are told by their names.
var readers = []reader{
	{"os-release", is("etc/os-release", "usr/lib/os-release"), (*scan).osRelease},
	{"dpkg", func(n string) bool {
		return n == "var/lib/dpkg/status" || path.Dir(n) == "var/lib/dpkg/status.d" && !strings.HasSuffix(n, ".md5sums")
	}, (*scan).dpkg},
	{"apk", is("lib/apk/db/installed", "usr/lib/apk/db/installed"), (*scan).apk},
	{"npm", base("package-lock.json"), (*scan).npmLock},
	{"npm", func(n string) bool {
		return path.Base(n) == "package.json" && strings.Contains("/"+n, "/node_modules/")
	}, (*scan).npmPackage},
	{"python", func(n string) bool {
		d := path.Base(path.Dir(n))
		return path.Base(n) == "METADATA" && strings.HasSuffix(d, ".dist-info") || path.Base(n) == "PKG-INFO" && strings.HasSuffix(d, ".egg-info")
	}, (*scan).python},
	{"cargo", base("Cargo.lock"), (*scan).cargo},
	{"ruby", base("Gemfile.lock"), (*scan).gemLock},
	{"ruby", func(n string) bool {
		return path.Base(path.Dir(n)) == "specifications" && strings.HasSuffix(n, ".gemspec")
	}, (*scan).gemspec},
	{"composer", func(n string) bool {
		return path.Base(n) == "composer.lock" || strings.HasSuffix("/"+n, "/composer/installed.json")
	}, (*scan).composer},
}

func is(names ...string) func(string) bool {
	return func(n string) bool { return slices.Contains(names, n) }
}

func base(name string) func(string) bool { return func(n string) bool { return path.Base(n) == name } }

// rpmFiles are the databases that are not read.
var rpmFiles = []string{"var/lib/rpm/Packages", "var/lib/rpm/Packages.db", "var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/Packages.db"}

type scan struct {
	out    Result
	distro [2]string
}

func (s *scan) add(p Package) {
	if p.Name == "" || !printable(p.Name+p.Version+p.Namespace) || len(p.Name)+len(p.Version)+len(p.Namespace) > 1000 || len(s.out.Packages) >= maxPackages {
		return
	}
	if len(p.License) > 1000 || !printable(p.License) {
		p.License = ""
	}
	s.out.Packages = append(s.out.Packages, p)
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' })
}

// Scan lists the packages in a tree; nil is an empty one.
func Scan(ctx context.Context, t *tree.Tree) (*Result, error) {
	s := &scan{}
	if t == nil {
		return &s.out, nil
	}
	err := t.Walk("/", tree.WalkOptions{Context: ctx}, func(e *tree.Entry) error {
		if !e.Info.IsRegular() || e.Info.Size == 0 {
			return nil
		}
		if slices.Contains(rpmFiles, e.Rel) {
			s.out.Missing = append(s.out.Missing, "the rpm database "+e.Rel)
		}
		for _, r := range readers {
			if !r.match(e.Rel) {
				continue
			}
			if e.Info.Size > maxFile {
				s.out.Missing = append(s.out.Missing, e.Rel+", which is too large")
				return nil
			}
			data, err := content(e)
			if err != nil {
				return err
			}
			r.read(s, e.Rel, data)
			return nil
		}
		if e.Info.Mode&0o111 != 0 {
			return s.goProgram(e)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range s.out.Packages {
		s.out.Packages[i].Distro = s.distro
		if p := &s.out.Packages[i]; p.Kind == "deb" || p.Kind == "apk" {
			p.Namespace = cmp.Or(s.distro[0], map[string]string{"deb": "debian", "apk": "alpine"}[p.Kind])
		}
	}
	slices.SortFunc(s.out.Packages, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.From, b.From))
	})
	s.out.Packages = slices.CompactFunc(s.out.Packages, func(a, b Package) bool { a.From, b.From = "", ""; return a == b })
	if len(s.out.Packages) == maxPackages {
		s.out.Missing = append(s.out.Missing, "more packages than the limit")
	}
	return &s.out, nil
}

func content(e *tree.Entry) (data []byte, err error) {
	f, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer errs.Close(&err, f)
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// The document.
type (
	document struct {
		SPDXVersion       string         `json:"spdxVersion"`
		DataLicense       string         `json:"dataLicense"`
		SPDXID            string         `json:"SPDXID"`
		Name              string         `json:"name"`
		DocumentNamespace string         `json:"documentNamespace"`
		CreationInfo      creation       `json:"creationInfo"`
		Comment           string         `json:"comment,omitempty"`
		Packages          []spdxPackage  `json:"packages"`
		Relationships     []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		Name             string        `json:"name"`
		SPDXID           string        `json:"SPDXID"`
		Version          string        `json:"versionInfo,omitempty"`
		Download         string        `json:"downloadLocation"`
		FilesAnalyzed    bool          `json:"filesAnalyzed"`
		SourceInfo       string        `json:"sourceInfo,omitempty"`
		LicenseConcluded string        `json:"licenseConcluded"`
		LicenseDeclared  string        `json:"licenseDeclared"`
		LicenseComments  string        `json:"licenseComments,omitempty"`
		Copyright        string        `json:"copyrightText"`
		Purpose          string        `json:"primaryPackagePurpose,omitempty"`
		ExternalRefs     []externalRef `json:"externalRefs,omitempty"`
	}
	externalRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		Element string `json:"spdxElementId"`
		Related string `json:"relatedSpdxElement"`
		Type    string `json:"relationshipType"`
	}
)

const noAssertion = "NOASSERTION"

// Document encodes what a scan found. Subject is the image; created the time of the document; tool names the program, with its version.
func (r *Result) Document(subject string, created time.Time, tool string) ([]byte, error) {
	d := document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", Name: subject,
		CreationInfo: creation{created.UTC().Format(time.RFC3339), []string{"Tool: " + tool}},
		Packages: []spdxPackage{{
			Name: subject, SPDXID: "SPDXRef-DocumentRoot", Download: noAssertion, LicenseConcluded: noAssertion, LicenseDeclared: noAssertion, Copyright: noAssertion, Purpose: "CONTAINER",
		}},
		Relationships: []relationship{{"SPDXRef-DOCUMENT", "SPDXRef-DocumentRoot", "DESCRIBES"}},
	}
	if len(r.Missing) > 0 {
		d.Comment = "This document does not list everything. Not read: " + strings.Join(r.Missing, "; ")
	}
	h := sha256.New()
	for i := range r.Packages {
		p := &r.Packages[i]
		locator := p.url()
		sum := sha256.Sum256([]byte(locator + "\x00" + p.From))
		id := "SPDXRef-Package-" + p.Kind + "-" + hex.EncodeToString(sum[:8])
		h.Write(sum[:])
		name := p.Name
		if p.Namespace != "" && p.Kind != "deb" && p.Kind != "apk" {
			name = p.Namespace + "/" + p.Name
		}
		sp := spdxPackage{
			Name: name, SPDXID: id, Version: p.Version, Download: noAssertion, SourceInfo: "found in /" + p.From, LicenseConcluded: noAssertion, LicenseDeclared: noAssertion,
			Copyright: noAssertion, ExternalRefs: []externalRef{{"PACKAGE-MANAGER", "purl", locator}},
		}
		if p.License != "" {
			sp.LicenseComments = "The package says: " + p.License // it need not be an expression of SPDX
		}
		d.Packages = append(d.Packages, sp)
		d.Relationships = append(d.Relationships, relationship{"SPDXRef-DocumentRoot", id, "CONTAINS"})
	}
	sum := h.Sum([]byte(subject))
	d.DocumentNamespace = "https://spdx.org/spdxdocs/ply-" + hex.EncodeToString(sum[len(sum)-16:])
	data, err := json.Marshal(d)
	if err != nil {
		return nil, errs.New(errs.Internal, "SBOM: %w", err)
	}
	if len(data) > oci.MaxAttestation {
		return nil, errs.New(errs.Exhausted, "the SBOM has %d bytes, the limit is %d", len(data), oci.MaxAttestation)
	}
	return data, nil
}

var errEnd = errors.New("end")
