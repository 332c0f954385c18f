package config

import (
	"reflect"
	"slices"
	"strings"
)

// Key describes one key of daemon.json, for the manual.
type Key struct {
	Name string
	Type string // what its value is in JSON, such as "list of strings"
	Use  string // what it sets; "" when it has no effect
	Flag string // the flag that sets it too; "" = none
	Live bool   // a changed value takes effect when the engine reads its file again
	Not  string // why it has no effect or is refused; "" = it has one
}

// Keys returns all keys that have an effect, and then those of dockerd that have none, each part in alphabetical order.
func Keys() []Key {
	var list []Key
	t := reflect.TypeFor[Config]()
	for _, f := range fields() {
		if f.key == "" {
			continue
		}
		list = append(list, Key{Name: f.key, Type: typeWords(t.Field(f.index).Type), Use: f.use, Flag: f.flag, Live: f.live, Not: f.ignored + f.refused})
	}
	slices.SortFunc(list, func(a, b Key) int {
		if (a.Not == "") != (b.Not == "") {
			if a.Not == "" {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}

// typeWords returns what a value of a type is in JSON.
func typeWords(t reflect.Type) string {
	if t == reflect.TypeFor[Size]() {
		return "size"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "number"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.String {
			return "list of strings"
		}
		return "list of objects"
	case reflect.Map, reflect.Struct:
		return "object"
	}
	return "string"
}
