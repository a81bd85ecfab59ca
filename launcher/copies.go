package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/wire"
)

// A copy is a tar stream and the SHA-256 of it. The first entry is the thing itself, as
// base name ".": the receiver decides what it is called.

// copyCount is what a copy was.
type copyCount struct{ files, bytes int64 }

// sendTree writes the copy of a file or a directory.
func sendTree(w io.Writer, path string) (n copyCount, err error) {
	path = filepath.Clean(path)
	top, err := filepath.EvalSymlinks(path) // as cp: the link itself is not meant
	if err != nil {
		return n, copyError(err, path)
	}
	sum := sha256.New()
	tw := tar.NewWriter(io.MultiWriter(w, sum))
	err = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return copyError(err, p)
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		return n.entry(tw, p, filepath.ToSlash(rel), d)
	})
	if err == nil {
		err = tw.Close()
	}
	if err == nil {
		_, err = w.Write(sum.Sum(nil))
	}
	return n, err
}

func (n *copyCount) entry(tw *tar.Writer, path, rel string, d fs.DirEntry) error {
	fi, err := d.Info()
	if err != nil {
		return copyError(err, path)
	}
	link := ""
	switch fi.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if link, err = os.Readlink(path); err != nil {
			return copyError(err, path)
		}
	default:
		return errs.New(errs.Invalid, "%s is neither a file nor a directory nor a link", path)
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name, h.Format = rel, tar.FormatPAX
	h.Uname, h.Gname, h.Uid, h.Gid = "", "", 0, 0
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return nil
	}
	n.files++
	n.bytes += fi.Size()
	f, err := os.Open(path)
	if err != nil {
		return copyError(err, path)
	}
	defer f.Close()
	got, err := io.Copy(tw, io.LimitReader(f, fi.Size()))
	if err == nil && got < fi.Size() {
		err = errs.New(errs.Corrupt, "%s became shorter while it was copied", path)
	}
	return err
}

// receiveTree reads a copy into to, which is its name, or, where that is a directory or
// asked to be one, into it under the name base. A file is there whole or not at all.
func receiveTree(r io.Reader, to, base string) (n copyCount, err error) {
	into := strings.HasSuffix(to, "/")
	to = filepath.Clean(to)
	if fi, err := os.Stat(to); err == nil && fi.IsDir() {
		into = true
	} else if into {
		return n, errs.New(errs.NotFound, "there is no directory %s", to)
	}
	if into {
		to = filepath.Join(to, base)
	}
	parent, err := os.OpenRoot(filepath.Dir(to))
	if err != nil {
		return n, copyError(err, filepath.Dir(to))
	}
	defer parent.Close()
	sum := sha256.New()
	c := &unpacking{n: &n, parent: parent, name: filepath.Base(to), at: to}
	tr := tar.NewReader(io.TeeReader(r, sum))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = c.entry(h, tr)
		}
		if err != nil {
			c.giveUp()
			return n, cutShort(err)
		}
	}
	var said [sha256.Size]byte
	_, err = io.ReadFull(r, said[:])
	if err == nil && !bytes.Equal(said[:], sum.Sum(nil)) {
		err = errs.New(errs.Corrupt, "what arrived is not what was sent")
	}
	if err != nil {
		c.giveUp()
		return n, cutShort(err)
	}
	return n, c.finish()
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Unavailable, "the copy ended before its end")
	}
	return err
}

// unpacking is a copy on its way to the disk.
type unpacking struct {
	n        *copyCount
	parent   *os.Root
	name, at string
	part     string // the file's name until it is whole
	file     *tar.Header
	root     *os.Root // of a directory
	dirs     []*tar.Header
}

const dirBits = 0o700 // a directory has these until all is in it

func (c *unpacking) entry(h *tar.Header, r io.Reader) error {
	mode := fs.FileMode(h.Mode) & 0o777
	if c.root == nil && c.file == nil { // the thing itself
		if h.Name != "." && h.Name != "./" {
			return errs.New(errs.Corrupt, "the copy begins with %q", h.Name)
		}
		if h.Typeflag == tar.TypeReg {
			if fi, err := c.parent.Lstat(c.name); err == nil && !fi.Mode().IsRegular() && fi.Mode().Type() != fs.ModeSymlink {
				return errs.New(errs.Invalid, "%s is not a file", c.at)
			}
			c.file, c.part = h, "."+c.name+".launcher-copy"
			return c.write(c.parent, c.part, h, r, mode)
		}
		if h.Typeflag != tar.TypeDir {
			return errs.New(errs.Corrupt, "the copy is of type %c", h.Typeflag)
		}
		err := c.parent.Mkdir(c.name, mode|dirBits)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return copyError(err, c.at)
		}
		if c.root, err = c.parent.OpenRoot(c.name); err != nil {
			return copyError(err, c.at)
		}
		c.dirs = append(c.dirs, h)
		return nil
	}
	name := strings.TrimSuffix(h.Name, "/")
	if c.root == nil || !filepath.IsLocal(name) {
		return errs.New(errs.Corrupt, "the copy has an entry %q", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := c.root.Mkdir(name, mode|dirBits); err != nil && !errors.Is(err, fs.ErrExist) {
			return copyError(err, name)
		}
		c.dirs = append(c.dirs, h)
		return nil
	case tar.TypeSymlink:
		if fi, err := c.root.Lstat(name); err == nil && !fi.IsDir() {
			_ = c.root.Remove(name)
		}
		if err := c.root.Symlink(h.Linkname, name); err != nil {
			return copyError(err, name)
		}
		return nil
	case tar.TypeReg:
		return c.write(c.root, name, h, r, mode)
	}
	return errs.New(errs.Corrupt, "the copy has an entry of type %c", h.Typeflag)
}

func (c *unpacking) write(root *os.Root, name string, h *tar.Header, r io.Reader, mode fs.FileMode) error {
	_ = root.Remove(name) // one that may not be written, or a link to elsewhere
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
	if err != nil {
		return copyError(err, name)
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return copyError(err, name)
	}
	c.n.files++
	c.n.bytes += h.Size
	_ = root.Chtimes(name, time.Time{}, h.ModTime)
	return nil
}

func (c *unpacking) finish() error {
	if c.file != nil {
		if err := c.parent.Rename(c.part, c.name); err != nil {
			return copyError(err, c.at)
		}
		return nil
	}
	if c.root == nil {
		return errs.New(errs.Corrupt, "the copy is empty")
	}
	defer c.root.Close()
	for i := len(c.dirs) - 1; i >= 0; i-- { // what is in a directory before the directory
		h := c.dirs[i]
		name := strings.TrimSuffix(h.Name, "/")
		if err := c.root.Chmod(name, fs.FileMode(h.Mode)&0o777); err != nil {
			return copyError(err, name)
		}
		_ = c.root.Chtimes(name, time.Time{}, h.ModTime)
	}
	return nil
}

func (c *unpacking) giveUp() {
	if c.file != nil {
		_ = c.parent.Remove(c.part)
	}
	if c.root != nil {
		_ = c.root.Close()
	}
}

func copyError(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.NotFound, "there is no %s", path)
	case errors.Is(err, fs.ErrPermission):
		return errs.Wrap(errs.Permission, err, "cannot copy")
	}
	return errs.Wrap(errs.Exhausted, err, "cannot copy")
}

// place is one side of a copy.
type place struct {
	node wire.NodeID // none: here
	path string
}

// parsePlace reads [NODE:]PATH; a name with a slash before the colon is a path.
func parsePlace(s string) place {
	if node, path, ok := strings.Cut(s, ":"); ok && node != "" && !strings.Contains(node, "/") {
		if path == "" {
			path = "."
		}
		return place{wire.NodeID(node), path}
	}
	return place{"", s}
}

func (a *app) cmdCp() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SRC... DST",
		Short: "copy files to a node or from it",
		Long: `Copy files and directories, with their modes, to or from a node of any pool: one side is
NODE:PATH, where PATH begins at the user's home there. What arrives is checked against what was
sent; a file is replaced when it is whole.`,
		Example: `  launcher cp data/ gpu-0:/tmp/
  launcher cp gpu-0:run/model.pt .`,
		Args: argCount(2, -1),
		RunE: func(c *cobra.Command, args []string) error {
			to := parsePlace(args[len(args)-1])
			var total copyCount
			for _, s := range args[:len(args)-1] {
				from := parsePlace(s)
				if len(args) > 2 && !strings.HasSuffix(to.path, "/") {
					to.path += "/" // several go into a directory
				}
				n, err := a.copy(c.Context(), from, to)
				if err != nil {
					return err
				}
				total.files, total.bytes = total.files+n.files, total.bytes+n.bytes
			}
			if a.json {
				a.printJSON(doc{"files": total.files, "bytes": total.bytes})
			}
			return nil
		},
	}
}

func (a *app) copy(ctx context.Context, from, to place) (n copyCount, err error) {
	if (from.node == "") == (to.node == "") {
		return n, errs.New(errs.Invalid, "one side of a copy is on a node, and the other here").Hint("NODE:PATH is on a node; `launcher nodes` lists them")
	}
	cl, err := a.connect(ctx)
	if err != nil {
		return n, err
	}
	defer cl.Close()
	p := wire.Process{Node: to.node, Own: true, Command: []string{"receive", "--base", baseOf(from.path), "--", to.path}}
	if from.node != "" {
		p = wire.Process{Node: from.node, Own: true, Command: []string{"send", "--", from.path}}
	}
	r, err := cl.start(ctx, p)
	if err != nil {
		return n, err
	}
	defer r.Close()
	var said strings.Builder
	var code int
	if from.node == "" {
		ended := make(chan error, 1)
		go func() {
			var err error
			code, err = r.wait(io.Discard, &said)
			ended <- err
		}()
		var serr error
		n, serr = sendTree(struct{ io.Writer }{r}, from.path)
		if cerr := r.CloseInput(); serr == nil {
			serr = cerr
		}
		// Who has all of it, and says so, need not have read to the end of what is said.
		if err = <-ended; err == nil && code == 0 && errs.KindOf(serr) != errs.Cancelled {
			err = serr
		}
		switch errs.KindOf(serr) {
		case errs.NotFound, errs.Permission, errs.Exhausted, errs.Invalid, errs.Corrupt: // ours; there it was only cut short
			return n, serr
		}
	} else {
		in, out := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			var err error
			n, err = receiveTree(in, to.path, baseOf(from.path))
			_ = in.CloseWithError(err)
			ended <- err
		}()
		code, err = r.wait(out, &said)
		_ = out.Close()
		if rerr := <-ended; rerr != nil && code == 0 {
			err = rerr
		}
	}
	if err == nil && code != 0 {
		err = remoteError(said.String())
	}
	if err != nil {
		return n, errs.Wrap(errs.Unknown, err, "node %s", cmp.Or(from.node, to.node))
	}
	return n, nil
}

// baseOf is what a copy is called in a directory.
func baseOf(path string) string {
	if base := filepath.Base(filepath.Clean(path)); base != "." && base != ".." && base != "/" {
		return base
	}
	return "copy"
}

// remoteError is what the launcher on a node said before it ended.
func remoteError(said string) error {
	first, rest, _ := strings.Cut(strings.TrimSpace(said), "\n")
	first = strings.TrimPrefix(first, "error: ")
	if first == "" {
		first = "the copy's other end failed"
	}
	e := errs.New(errs.Invalid, "%s", first)
	for line := range strings.Lines(rest) {
		if hint, ok := strings.CutPrefix(strings.TrimSpace(line), "hint: "); ok {
			e = e.Hint("%s", hint)
		}
	}
	return e
}

// copyCommands are the other ends of copies, on nodes.
func copyCommands() []*cobra.Command {
	var base string
	receive := &cobra.Command{Use: "receive", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		_, err := receiveTree(os.Stdin, nodePath(args[0]), base)
		return err
	}}
	receive.Flags().StringVar(&base, "base", "copy", "its name in a directory")
	send := &cobra.Command{Use: "send", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		_, err := sendTree(os.Stdout, nodePath(args[0]))
		return err
	}}
	return []*cobra.Command{receive, send}
}

// nodePath has ~ mean the home; a process on a node begins there.
func nodePath(path string) string {
	rest, ok := strings.CutPrefix(path, "~")
	home, err := os.UserHomeDir()
	if !ok || err != nil || rest != "" && rest[0] != '/' {
		return path
	}
	return home + rest
}
