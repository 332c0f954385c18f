package container

import (
	"encoding/json"
	"errors"
	"hash/fnv"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	versioned "ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/store/meta"
)

// recordVersion is the version of the records of this build; the database writes it.
const recordVersion = 1

// The form in which a container is stored: a record with every field filled.
func TestGoldenRecord(t *testing.T) {
	want := fullRecord(t)
	recordtest.Filled(t, want)
	raw, err := versioned.Marshal(recordVersion, want)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "container.v1.json", raw)
	recordtest.Decodes(t, "container.v1.json", recordVersion, want)
}

// A record of a build before the first release, which has no version, loses nothing when this build reads it and writes
// it again.
func TestRecordWithoutVersion(t *testing.T) {
	old := recordtest.Read(t, "container.unversioned.json")
	var r record
	if err := versioned.Unmarshal("container", old, recordVersion, &r); err != nil {
		t.Fatal(err)
	}
	if r.Name != "name-6" || r.Spec.Hostname != "hostname-25" || r.State.Health.Log[1].ExitCode == 0 || !r.Mounts[1].CopyUp ||
		r.Ports[0].HostPort == 0 || r.Spec.Resources.PidsLimit == nil {
		t.Errorf("decoded record %+v", r)
	}
	again, err := versioned.Marshal(recordVersion, r)
	if err != nil {
		t.Fatal(err)
	}
	var was, is any
	if err := errors.Join(json.Unmarshal(old, &was), json.Unmarshal(again, &is)); err != nil {
		t.Fatal(err)
	}
	contains(t, "record", is, was)
}

// contains checks that every field of was is in is, with the same value.
func contains(t *testing.T, path string, is, was any) {
	t.Helper()
	switch was := was.(type) {
	case map[string]any:
		is, _ := is.(map[string]any)
		for k, v := range was {
			if _, ok := is[k]; !ok {
				t.Errorf("%s.%s is lost", path, k)
				continue
			}
			contains(t, path+"."+k, is[k], v)
		}
	case []any:
		is, _ := is.([]any)
		if len(is) != len(was) {
			t.Errorf("%s has %d elements, want %d", path, len(is), len(was))
			return
		}
		for i, v := range was {
			contains(t, path+"[]", is[i], v)
		}
	default:
		if !reflect.DeepEqual(is, was) {
			t.Errorf("%s = %v, want %v", path, is, was)
		}
	}
}

// The database refuses a container of a newer release and names the release.
func TestNewerRecordIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.db")
	db, err := meta.Open(path, meta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	id := oci.ContainerID(strings.Repeat("ab", 32))
	err = db.Update(func(tx *meta.Tx) error {
		return tx.Containers.Put(id, json.RawMessage(`{"version":2,"writer":"9.9.9","image":"x"}`))
	})
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.9.9") || !strings.Contains(err.Error(), string(id)) {
		t.Errorf("error = %v, want Precondition that names the container and the writer", err)
	}
	var r record
	err = versioned.Unmarshal("container", []byte(`{"version":2,"writer":"9.9.9"}`), recordVersion, &r)
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.9.9") {
		t.Errorf("error = %v, want Precondition that names the writer", err)
	}
}

// fullRecord returns a record in which every field has a value that follows from its path, so that a new field changes no
// other value in the golden file.
func fullRecord(t *testing.T) record {
	t.Helper()
	var r record
	fill(t, "record", reflect.ValueOf(&r).Elem())
	return r
}

func fill(t *testing.T, path string, v reflect.Value) {
	t.Helper()
	h := fnv.New32()
	h.Write([]byte(path))
	n := h.Sum32()%199 + 1
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p = time.Date(2026, 1, 2, 3, 4, int(n%60), int(n), time.UTC)
		return
	case *netip.Addr:
		*p = netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
		return
	case *netip.Prefix:
		*p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 24)
		return
	case *oci.ImageID:
		*p = oci.ImageID(oci.DigestOf([]byte(path)))
		return
	case *oci.DiffID:
		*p = oci.DiffID(oci.DigestOf([]byte(path)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(path[strings.LastIndexByte(path, '.')+1:])
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(n))
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, path, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, path, v.Index(0))
	case reflect.Array:
		for i := range v.Len() {
			fill(t, path, v.Index(i))
		}
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(t, path, e)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), e)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, path+"."+v.Type().Field(i).Name, v.Field(i))
		}
	default:
		t.Fatalf("%s: no value for a %s", path, v.Type())
	}
}
