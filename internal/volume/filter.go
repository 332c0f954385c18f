package volume

import "ply/internal/filter"

// ListFilters are the conditions of List.
var ListFilters = filter.Table[*Volume]{
	"dangling": filter.Bool(func(v *Volume, dangling bool) bool { return dangling == (v.RefCount == 0) }),
	"driver":   filter.Exact(func(v *Volume) string { return v.Driver }),
	"label":    filter.Labels(labelsOf),
	"name":     filter.Text(func(v *Volume) []string { return []string{v.Name} }),
}

// PruneFilters are the conditions of Prune.
var PruneFilters = filter.Table[*Volume]{
	"all":    filter.Bool(func(v *Volume, all bool) bool { return all || v.Anonymous }),
	"label":  filter.Labels(labelsOf),
	"label!": filter.NotAllLabels(labelsOf),
}

func labelsOf(v *Volume) map[string]string { return v.Labels }
