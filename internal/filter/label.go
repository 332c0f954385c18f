package filter

import (
	"slices"
	"strings"
)

// Labels returns the key "label": an item must have every label that is named, as KEY or KEY=VALUE.
func Labels[T any](labels func(T) map[string]string) Key[T] {
	return func(_ string, values []string) (Match[T], error) {
		return func(item T) bool { return hasLabels(labels(item), values) }, nil
	}
}

// NoLabel returns the key "label!" of images: an item that has one of the labels is left out.
func NoLabel[T any](labels func(T) map[string]string) Key[T] {
	return func(_ string, values []string) (Match[T], error) {
		return func(item T) bool {
			have := labels(item)
			return !slices.ContainsFunc(values, func(v string) bool { return hasLabel(have, v) })
		}, nil
	}
}

// NotAllLabels returns the key "label!" of containers, volumes and networks: Docker leaves out an item that has all of
// the labels.
func NotAllLabels[T any](labels func(T) map[string]string) Key[T] {
	return func(_ string, values []string) (Match[T], error) {
		return func(item T) bool { return len(values) == 0 || !hasLabels(labels(item), values) }, nil
	}
}

func hasLabels(labels map[string]string, want []string) bool {
	return !slices.ContainsFunc(want, func(w string) bool { return !hasLabel(labels, w) })
}

func hasLabel(labels map[string]string, want string) bool {
	key, value, withValue := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!withValue || got == value)
}
