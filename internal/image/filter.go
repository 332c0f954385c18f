package image

import (
	"time"

	"ply/internal/filter"
	"ply/internal/oci"
)

// ListFilters are the conditions of List.
var ListFilters = filter.Table[*Image]{
	"dangling":  filter.Bool(anyImage), // List evaluates it
	"label":     filter.Labels(labelsOf),
	"label!":    filter.NoLabel(labelsOf),
	"before":    filter.ByCaller[*Image](nil), // an image
	"since":     filter.ByCaller[*Image](nil), // an image
	"until":     filter.Before((*Image).Created),
	"reference": filter.ByCaller[*Image](filter.ValidGlob),
}

// PruneFilters are the conditions of Prune. unused is the time since which an image was not used.
var PruneFilters = filter.Table[*Image]{
	"dangling": filter.Bool(anyImage),
	"label":    filter.Labels(labelsOf),
	"label!":   filter.NoLabel(labelsOf),
	"until":    filter.Until((*Image).Created),
	"unused":   filter.Until(func(img *Image) time.Time { return img.LastUsed }),
}

func anyImage(*Image, bool) bool { return true }

func labelsOf(img *Image) map[string]string { return img.Config.Config.Labels }

// selection has the filters of one List.
type selection struct {
	match         filter.Match[*Image]
	dangling      *bool
	before, since *time.Time
	references    []string // patterns of names; one must match
	byConfig      bool     // match reads the configs of images
}

func (s *Service) selection(args filter.Args) (*selection, error) {
	match, err := ListFilters.Compile(args)
	if err != nil {
		return nil, err
	}
	sel := &selection{match: match, references: args["reference"]}
	for _, key := range []string{"label", "label!", "until"} {
		sel.byConfig = sel.byConfig || len(args[key]) > 0
	}
	if sel.dangling, err = danglingOf(args); err != nil {
		return nil, err
	}
	if sel.before, err = s.createdOf(args["before"], time.Time.Before); err != nil {
		return nil, err
	}
	if sel.since, err = s.createdOf(args["since"], time.Time.After); err != nil {
		return nil, err
	}
	return sel, nil
}

// needsConfig reports whether the selection depends on the configs of images.
func (sel *selection) needsConfig() bool {
	return sel.byConfig || sel.before != nil || sel.since != nil
}

// danglingOf returns the value of the filter dangling, or nil.
func danglingOf(args filter.Args) (*bool, error) {
	v, set, err := args.Bool("dangling")
	if err != nil || !set {
		return nil, err
	}
	return &v, nil
}

// createdOf returns the creation time of one of the images that a before or since filter names, or nil: of the one that is further than the
// others, so that an image meets the condition of each of them.
func (s *Service) createdOf(refs []string, further func(a, b time.Time) bool) (created *time.Time, err error) {
	for _, ref := range refs {
		id, err := s.Lookup(ref)
		if err != nil {
			return nil, err
		}
		cfg, _, err := s.config(id)
		if err != nil {
			return nil, err
		}
		at := cfg.Created
		if at == nil {
			at = new(time.Time)
		}
		if created == nil || further(*at, *created) {
			created = at
		}
	}
	return created, nil
}

// wantNames reports whether the names of an image pass the filters. shown is false for an intermediate image when opts.All is not
// set.
func (sel *selection) wantNames(img *Image, shown, isParent bool) bool {
	if len(img.Names)+len(img.Digests) == 0 {
		if sel.dangling != nil {
			return *sel.dangling && !isParent
		}
		return shown
	}
	// As in Docker, an image whose only name is a digest counts as dangling.
	return sel.dangling == nil || !*sel.dangling || len(img.Names) == 0 && !isParent
}

// wants reports whether the config of an image passes the filters.
func (sel *selection) wants(img *Image) bool {
	created := img.Created()
	if sel.before != nil && !created.Before(*sel.before) || sel.since != nil && !created.After(*sel.since) {
		return false
	}
	return sel.match(img)
}

// matching returns the names that one of the reference patterns matches, with or without the registry of Docker Hub and the tag.
func (sel *selection) matching(names []oci.Reference) []oci.Reference {
	var out []oci.Reference
	for _, n := range names {
		if filter.Globs(sel.references, n.Familiar(), n.FamiliarName(), n.String(), n.Name()) {
			out = append(out, n)
		}
	}
	return out
}
