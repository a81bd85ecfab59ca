package bundle

import (
	"archive/tar"
	"cmp"
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

const (
	// Max is how many bytes the files of a directory may have together.
	Max = 500 << 20
	// MaxFiles bounds how many there may be.
	MaxFiles = 100_000
	// TokenPrefix begins the names of files that are made in a directory for a moment, for
	// another node to see whether it has that very directory. They are never packed.
	TokenPrefix = ".launcher-here-"
)

// ignoreFiles say what is left out, each for its directory and those below.
var ignoreFiles = []string{".gitignore", ".launcherignore"}

type entry struct {
	rel  string
	info fs.FileInfo
	link string // target of a symbolic link
}

// list is what of a directory is packed, and what it takes.
type list struct {
	dir     string
	entries []entry
	size    int64
	whole   bool             // nothing is left out
	tops    map[string]int64 // size by name in dir
}

// Pack writes what is in a directory, but for what its .gitignore and .launcherignore files
// leave out, as a tar stream. The same files give the same stream.
func Pack(ctx context.Context, w io.Writer, dir string) error {
	return pack(ctx, w, dir, Max, MaxFiles)
}

// PackAll is Pack of everything, however much it is.
func PackAll(ctx context.Context, w io.Writer, dir string) error {
	l := &list{dir: dir, whole: true, tops: map[string]int64{}}
	if err := l.walk(ctx, "", nil, math.MaxInt); err != nil {
		return err
	}
	return l.writeAll(ctx, w)
}

func pack(ctx context.Context, w io.Writer, dir string, most int64, files int) error {
	l := &list{dir: dir, tops: map[string]int64{}}
	if err := l.walk(ctx, "", builtin, files); err != nil {
		return err
	}
	if l.size > most {
		top := slices.MaxFunc(topNames(l.tops), func(a, b string) int { return cmp.Compare(l.tops[a], l.tops[b]) })
		return errs.New(errs.Invalid, "the working_dir %s has %s, and a node that does not see it can be brought at most %s; the most is in %s (%s)",
			dir, wire.Bytes(l.size), wire.Bytes(most), top, wire.Bytes(l.tops[top])).Hint("leave files out by a .launcherignore in it (the language of .gitignore), or pass data as objects")
	}
	return l.writeAll(ctx, w)
}

func (l *list) writeAll(ctx context.Context, w io.Writer) error {
	t := tar.NewWriter(w)
	for _, e := range l.entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := l.write(t, e); err != nil {
			return err
		}
	}
	return t.Close()
}

func topNames(tops map[string]int64) (out []string) {
	for name := range tops {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (l *list) walk(ctx context.Context, rel string, rules []rule, files int) error {
	all, err := os.ReadDir(filepath.Join(l.dir, rel)) // sorted
	if err != nil {
		return l.unread(rel, err)
	}
	for _, name := range ignoreFiles {
		if l.whole {
			break
		}
		text, err := os.ReadFile(filepath.Join(l.dir, rel, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return l.unread(path.Join(rel, name), err)
		}
		rules = append(slices.Clip(rules), rulesOf(rel, string(text))...)
	}
	for _, d := range all {
		e := entry{rel: path.Join(rel, d.Name())}
		if ignored(rules, e.rel, d.IsDir()) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch e.info, err = d.Info(); {
		case errors.Is(err, fs.ErrNotExist):
			continue // it went meanwhile
		case err != nil:
			return l.unread(e.rel, err)
		}
		switch e.info.Mode().Type() {
		case 0:
			l.size += e.info.Size()
			top, _, _ := strings.Cut(e.rel, "/")
			l.tops[top] += e.info.Size()
		case fs.ModeDir:
		case fs.ModeSymlink:
			if e.link, err = os.Readlink(filepath.Join(l.dir, e.rel)); err != nil {
				return l.unread(e.rel, err)
			}
		default:
			continue // a socket, a pipe: nothing that could be elsewhere
		}
		if l.entries = append(l.entries, e); len(l.entries) > files {
			return errs.New(errs.Invalid, "the working_dir %s has more than %d files, which cannot be brought to a node that does not see it", l.dir, files).
				Hint("leave files out by a .launcherignore in it (the language of .gitignore)")
		}
		if e.info.IsDir() {
			if err := l.walk(ctx, e.rel, rules, files); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *list) unread(rel string, err error) error {
	return errs.Wrap(errs.Permission, err, "the working_dir %s cannot be brought to other nodes: reading %s", l.dir, filepath.Join(l.dir, rel)).
		Hint("what they do not need can be left out by a .launcherignore in it")
}

func (l *list) write(t *tar.Writer, e entry) error {
	h, err := tar.FileInfoHeader(e.info, e.link)
	if err != nil {
		return l.unread(e.rel, err)
	}
	// Whose files they are is of no matter elsewhere.
	h = &tar.Header{Typeflag: h.Typeflag, Name: e.rel, Linkname: e.link, Mode: int64(e.info.Mode().Perm()), ModTime: e.info.ModTime().Truncate(time.Second), Format: tar.FormatPAX}
	if h.Typeflag != tar.TypeReg {
		return t.WriteHeader(h)
	}
	f, err := os.Open(filepath.Join(l.dir, e.rel))
	if err != nil {
		return l.unread(e.rel, err)
	}
	defer f.Close()
	h.Size = e.info.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if n, err := io.CopyN(t, f, h.Size); n != h.Size {
		return errs.Wrap(errs.Unavailable, err, "%s changed while it was packed", filepath.Join(l.dir, e.rel))
	}
	return nil
}

// Unpack writes what Pack made into an empty directory, and nothing outside of it.
func Unpack(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "unpacking")
	}
	defer root.Close()
	type late struct {
		name string
		h    *tar.Header
	}
	var dirs []late // may be read-only: their modes come when all is in them
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return errs.Wrap(errs.Corrupt, err, "unpacking")
		}
		switch h.Typeflag {
		case tar.TypeDir:
			name := strings.TrimSuffix(h.Name, "/")
			err = root.Mkdir(name, 0o700)
			dirs = append(dirs, late{name, h})
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, h.Name)
		case tar.TypeReg:
			err = file(root, h, t)
		default:
			err = errs.New(errs.Corrupt, "an entry of type %q", h.Typeflag)
		}
		if err != nil {
			return errs.Wrap(errs.Exhausted, err, "unpacking %s", h.Name)
		}
	}
	for _, d := range slices.Backward(dirs) {
		// The owner is to be able to remove it.
		err := root.Chmod(d.name, fs.FileMode(d.h.Mode).Perm()|0o700)
		if err == nil {
			err = root.Chtimes(d.name, d.h.ModTime, d.h.ModTime)
		}
		if err != nil {
			return errs.Wrap(errs.Exhausted, err, "unpacking %s", d.name)
		}
	}
	return nil
}

func file(root *os.Root, h *tar.Header, r io.Reader) error {
	f, err := root.OpenFile(h.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(fs.FileMode(h.Mode).Perm())
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = root.Chtimes(h.Name, h.ModTime, h.ModTime)
	}
	return err
}
