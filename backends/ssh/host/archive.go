package host

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"launcher/internal/errs"
)

// notRecord are entries of a cluster's state directory that belong to the machine it is
// on: processes' logs and locks, where they listen, what backends have written down.
var notRecord = []string{"nodes", "ssh", "head.config", "cluster.json", "head.at", "head.left", "head.log", "head.lock", "link.log", "link.lock", arriving}

// arriving is where a record is put together before it replaces the old one.
const arriving = ".arriving"

// whole ends an archive: one that was cut between two files has none.
const whole = ".whole"

// downDone says that a cluster is down: a head that finds it brings it up anew.
const downDone = "down.done"

// Pack writes what a cluster's state directory has that a head goes on with, but for some.
func Pack(dir string, w io.Writer, without ...string) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // a segment that was compacted away meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if name == "." {
			return nil
		}
		if slices.Contains(notRecord, name) || slices.Contains(without, name) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if e.IsDir() {
			return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o700})
		}
		if !e.Type().IsRegular() {
			return nil
		}
		return packFile(t, path, name)
	})
	if err == nil {
		err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: whole, Mode: 0o600})
	}
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "packing the record of a cluster")
	}
	return nil
}

func packFile(t *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: st.Size(), ModTime: st.ModTime()}); err != nil {
		return err
	}
	_, err = io.CopyN(t, f, st.Size())
	return err
}

// Unpack replaces what dir has by what Pack has written elsewhere. Nothing is replaced
// before all has come.
func Unpack(dir string, r io.Reader) error {
	fresh := filepath.Join(dir, arriving)
	if err := os.RemoveAll(fresh); err != nil {
		return errs.Wrap(errs.Permission, err, "the record of a cluster")
	}
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return errs.Wrap(errs.Permission, err, "the record of a cluster")
	}
	defer os.RemoveAll(fresh)
	if err := unpackBelow(fresh, r); err != nil {
		return errs.Wrap(errs.Unavailable, err, "the record of a cluster did not come whole")
	}
	ents, err := os.ReadDir(fresh)
	for _, e := range ents {
		old := filepath.Join(dir, e.Name())
		if err == nil {
			err = os.RemoveAll(old)
		}
		if err == nil {
			err = os.Rename(filepath.Join(fresh, e.Name()), old)
		}
	}
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the record of a cluster")
	}
	return nil
}

func unpackBelow(dir string, r io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if h.Name == whole {
			return nil
		}
		name := strings.TrimSuffix(h.Name, "/")
		if first, _, _ := strings.Cut(name, "/"); !filepath.IsLocal(name) || slices.Contains(notRecord, first) {
			return errs.New(errs.Corrupt, "%q is nothing of a record", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.Mkdir(name, 0o700)
		case tar.TypeReg:
			var f *os.File
			if f, err = root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
				return err
			}
			_, err = io.Copy(f, t)
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err == nil {
				err = root.Chtimes(name, h.ModTime, h.ModTime)
			}
		default:
			err = errs.New(errs.Corrupt, "%q is no file", h.Name)
		}
		if err != nil {
			return err
		}
	}
}
