package network

import (
	"time"

	"ply/internal/filter"
)

// ListFilters are the conditions of List.
var ListFilters = filter.Table[*Network]{
	"name":   filter.Text(func(n *Network) []string { return []string{n.Name} }),
	"id":     filter.Text(func(n *Network) []string { return []string{n.ID} }),
	"driver": filter.Exact(func(n *Network) string { return n.Driver }),
	"type": filter.Exact(func(n *Network) string {
		if n.BuiltIn {
			return "builtin"
		}
		return "custom"
	}),
	"scope":    filter.Exact(func(*Network) string { return "local" }),
	"label":    filter.Labels(labelsOf),
	"dangling": filter.Bool(func(n *Network, dangling bool) bool { return dangling == (!n.BuiltIn && len(n.Endpoints) == 0) }),
}

// PruneFilters are the conditions of a prune.
var PruneFilters = filter.Table[*Network]{
	"until":  filter.Until(func(n *Network) time.Time { return n.Created }),
	"label":  filter.Labels(labelsOf),
	"label!": filter.NotAllLabels(labelsOf),
}

func labelsOf(n *Network) map[string]string { return n.Labels }
