package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/session"
)

// ship sees to it that nodes which do not see a job's directory can have it: the head gets
// what is in it.
func (a *app) ship(ctx context.Context, t target, c *client, s *wire.JobSpec) error {
	var info wire.ClusterInfo
	if err := c.call(ctx, wire.MsgInfo, wire.InfoRequest{}, &info); err != nil {
		return err
	}
	if s.Dir == "" || !slices.ContainsFunc(info.Pools, func(p wire.PoolInfo) bool {
		return p.Apart && (s.Pool == "" || s.Pool == p.Name)
	}) {
		return nil
	}
	s.DirToken = bundle.Token(s.Dir)
	if s.Hidden || s.DirToken == "" {
		return nil
	}
	if home, _ := os.UserHomeDir(); filepath.Clean(s.Dir) == filepath.Clean(home) || s.Dir == "/" {
		a.note("launcher: %s is not brought to nodes that do not see it: it is a whole home; submit from a directory in it, or give --workdir", s.Dir)
		return nil
	}
	f, err := os.CreateTemp("", "launcher-dir-*")
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "packing the working directory")
	}
	defer f.Close()
	_ = os.Remove(f.Name())
	sum := sha256.New()
	z, err := bundle.Compress(f)
	if err == nil {
		err = bundle.Pack(ctx, io.MultiWriter(z, sum), s.Dir)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		a.note("launcher: %s is not brought to nodes that do not see it: %s", s.Dir, errs.Line(err))
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return errs.Wrap(errs.Exhausted, err, "packing the working directory")
	}
	tree := wire.Tree{Sum: hex.EncodeToString(sum.Sum(nil))}
	st, err := c.open(ctx, wire.MsgTreePut, wire.TreePut{Tree: tree})
	if err != nil {
		return err
	}
	defer st.Close()
	if err := offer(st, f); err != nil {
		return errs.Wrap(errs.Unknown, err, "giving the working directory to the head")
	}
	s.DirSum = tree.Sum
	if len(s.Outputs) == 0 && t.dir != "" {
		// Said once: whoever names outputs knows, and whose nodes share the directory need not.
		if f, err := os.OpenFile(filepath.Join(t.dir, "copies.told"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			f.Close()
			a.note("launcher: nodes that do not see %s run in copies of it; what is written there is deleted but for what --outputs names", s.Dir)
		}
	}
	return nil
}

func offer(st *session.Stream, f io.Reader) error {
	var is wire.TreeWanted
	if err := answer(st, &is); err != nil || !is.Wanted {
		return err
	}
	if _, err := io.Copy(st, f); err != nil {
		if e := answer(st, &struct{}{}); e != nil && errs.KindOf(e) == errs.Exhausted {
			return e
		}
		return away(err)
	}
	if err := st.CloseWrite(); err != nil {
		return away(err)
	}
	return answer(st, &struct{}{})
}
