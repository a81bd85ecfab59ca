package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// MaxOutputs is how many bytes the outputs of one task on one node may have together.
const MaxOutputs = 2 << 30

// stamp is what tells a file that was changed from one that came with the bundle.
type stamp struct {
	size int64
	mod  time.Time
	link string
}

// PackOutputs writes those files of a private copy as a tar stream that the globs mean and
// that are not as they came: packed is the stream that the copy was made of. A glob that
// fits a directory means all that is in it; ** stands for any number of directories.
func PackOutputs(ctx context.Context, w io.Writer, dir string, packed io.Reader, globs []string) error {
	return packOutputs(ctx, w, dir, packed, globs, MaxOutputs)
}

func packOutputs(ctx context.Context, w io.Writer, dir string, packed io.Reader, globs []string, most int64) error {
	came := map[string]stamp{}
	for t := tar.NewReader(packed); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return errs.Wrap(errs.Corrupt, err, "what the working directory was made of")
		}
		came[strings.TrimSuffix(h.Name, "/")] = stamp{h.Size, h.ModTime, h.Linkname}
	}
	l := &list{dir: dir, whole: true, tops: map[string]int64{}}
	if err := l.walk(ctx, "", nil, math.MaxInt); err != nil {
		return err
	}
	var patterns [][]string
	for _, g := range globs {
		patterns = append(patterns, strings.Split(path.Clean(g), "/"))
	}
	l.size = 0
	above := map[string]bool{} // the directories that what comes lies in
	keep := slices.DeleteFunc(slices.Clone(l.entries), func(e entry) bool {
		if !meant(patterns, e.rel) {
			return true
		}
		was, ok := came[e.rel]
		switch {
		case e.info.IsDir():
			return ok
		case ok && e.link == was.link && (e.link != "" || e.info.Size() == was.size && e.info.ModTime().Equal(was.mod)):
			return true
		}
		if e.info.Mode().IsRegular() {
			l.size += e.info.Size()
		}
		for d := path.Dir(e.rel); d != "."; d = path.Dir(d) {
			above[d] = true
		}
		return false
	})
	for _, e := range keep {
		above[e.rel] = true
	}
	l.entries = slices.DeleteFunc(l.entries, func(e entry) bool { return !above[e.rel] })
	if l.size > most {
		return errs.New(errs.Exhausted, "the outputs have %s, and at most %s of a task are brought back", wire.Bytes(l.size), wire.Bytes(most))
	}
	return l.writeAll(ctx, w)
}

// meant reports whether a pattern fits a path or a directory above it.
func meant(patterns [][]string, rel string) bool {
	parts := strings.Split(rel, "/")
	return slices.ContainsFunc(patterns, func(p []string) bool {
		for n := 1; n <= len(parts); n++ {
			if fits(p, parts[:n]) {
				return true
			}
		}
		return false
	})
}

// Came is what was brought into a directory.
type Came struct {
	Files int
	Bytes int64
}

// Add sums up.
func (c *Came) Add(d Came) { c.Files, c.Bytes = c.Files+d.Files, c.Bytes+d.Bytes }

// Bring copies what is below from into a directory, each file whole or not at all, and
// nothing outside of it. A directory that has been replaced meanwhile is another one.
func Bring(ctx context.Context, from string, into wire.Into) (n Came, err error) {
	dir, tok := into.Dir, into.Token
	if is := token(dir, ""); is == "" || !strings.HasPrefix(tok, strings.Fields(is)[0]+" ") {
		return n, errs.New(errs.NotFound, "the directory %s is not there any more, or is another one", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return n, errs.Wrap(errs.Permission, err, "the directory %s", dir)
	}
	defer root.Close()
	b := bringing{root, TokenPrefix + into.Tag}
	err = filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		rel, e := filepath.Rel(from, p)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil || e != nil:
			return errors.Join(err, e)
		case rel == ".":
			return nil
		case d.IsDir():
			err = root.MkdirAll(rel, 0o777)
		case d.Type() == fs.ModeSymlink:
			n.Files++
			err = b.link(p, rel)
		case d.Type().IsRegular():
			var size int64
			size, err = b.file(p, rel)
			n.Add(Came{1, size})
		}
		if err != nil {
			return errs.Wrap(errs.Exhausted, err, "bringing %s into %s", rel, dir)
		}
		return nil
	})
	return n, err
}

// bringing is one copy into a directory.
type bringing struct {
	root *os.Root
	name string // of a file until it is whole
}

func (b bringing) part(rel string) (string, error) {
	p := path.Join(path.Dir(rel), b.name)
	if err := b.root.MkdirAll(path.Dir(rel), 0o777); err != nil {
		return p, err
	}
	_ = b.root.Remove(p) // of one that was cut short
	return p, nil
}

func (b bringing) link(from, rel string) error {
	to, err := os.Readlink(from)
	if err != nil {
		return err
	}
	part, err := b.part(rel)
	if err == nil {
		err = b.root.Symlink(to, part)
	}
	if err == nil {
		err = b.root.Rename(part, rel)
	}
	return err
}

func (b bringing) file(from, rel string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return 0, err
	}
	part, err := b.part(rel)
	if err != nil {
		return 0, err
	}
	out, err := b.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(fi.Mode().Perm())
	}
	if e := out.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = b.root.Chtimes(part, fi.ModTime(), fi.ModTime())
	}
	if err == nil {
		err = b.root.Rename(part, rel)
	}
	if err != nil {
		_ = b.root.Remove(part)
	}
	return fi.Size(), err
}
