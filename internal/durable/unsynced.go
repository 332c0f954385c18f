package durable

import "io/fs"

// Unsynced returns fsys without syncs: what is written may be lost in a power cut, but not when the process ends.
func Unsynced(fsys FS) FS { return unsynced{fsys} }

type unsynced struct{ FS }

func (u unsynced) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := u.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

func (unsynced) SyncDir(string) error { return nil }
func (unsynced) SyncFS(string) error  { return nil }

type unsyncedFile struct{ File }

func (unsyncedFile) Sync() error { return nil }
