package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"launcher/agent/core"
	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire"
)

// A job's checkpoints lie in one directory: that of the spec, or the job's record. A
// training has step-N.aATTEMPT/rank-R below it; other kinds, whose tasks have
// checkpoints of their own, INDEX/step-N.aATTEMPT/rank-R.

// checkpointRoot is where the checkpoints of a task go.
func checkpointRoot(j *wire.Job, index uint32) string {
	root := filepath.Join(j.Record, "checkpoints")
	if t := j.Spec.Train; t != nil && t.Checkpoints != "" {
		root = t.Checkpoints
	}
	if j.Spec.Kind != wire.KindTrain {
		root = filepath.Join(root, fmt.Sprint(index))
	}
	return root
}

// saveCheckpoint copies a directory that a rank reported to the job's checkpoint place,
// whole and safe or not at all, and gives the directory of the step.
func (a *agent) saveCheckpoint(ctx context.Context, j *wire.Job, p wire.Proc, step int64, from string) (string, error) {
	root := checkpointRoot(j, p.Index)
	at := filepath.Join(root, fmt.Sprintf("step-%d.a%d", step, p.Attempt))
	st, err := os.Stat(from)
	switch {
	case err != nil:
		return "", errs.Wrap(errs.NotFound, err, "the reported checkpoint")
	case !st.IsDir():
		return "", errs.New(errs.Invalid, "the reported checkpoint %s is not a directory", from)
	case within(from, at) || within(at, from):
		return "", errs.New(errs.Invalid, "the reported checkpoint %s cannot be copied to %s, which lies in it", from, at).
			Hint("write checkpoints to $LAUNCHER_CHECKPOINT_OUT, or anywhere else, and report them from there")
	}
	if rel := inRecord(j.Job, at); rel != "" && !a.trees.seesRecord(j) {
		return at, a.trees.keep(ctx, j, fmt.Sprintf("%s/rank-%d", rel, p.Rank), from)
	}
	fail := func(err error) (string, error) {
		return "", diskErr(err, "the checkpoint of step %d cannot be saved to %s", step, at)
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		return fail(err)
	}
	tmp, err := os.MkdirTemp(at, ".saving-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(tmp)
	whole := filepath.Join(tmp, "new")
	if err := copyTree(ctx, from, whole); err != nil {
		return fail(err)
	}
	to := filepath.Join(at, fmt.Sprintf("rank-%d", p.Rank))
	// The same step reported again: the new one takes the old one's place.
	if err := os.Rename(to, filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if err := os.Rename(whole, to); err != nil {
		return fail(err)
	}
	for _, d := range []string{at, root} {
		if err := disk.Sync(d); err != nil {
			return fail(err)
		}
	}
	return at, nil
}

// within reports whether path is dir or below it.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// copyTree copies a directory with its regular files, directories and links, and makes
// them safe.
func copyTree(ctx context.Context, from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case e.IsDir():
			err = copyTree(ctx, src, dst)
		case e.Type() == fs.ModeSymlink:
			var target string
			if target, err = os.Readlink(src); err == nil {
				err = os.Symlink(target, dst)
			}
		case e.Type().IsRegular():
			err = copyFile(src, dst)
		default:
			err = errs.New(errs.Invalid, "%s is neither a file nor a directory", src)
		}
		if err != nil {
			return err
		}
	}
	return disk.Sync(to)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode().Perm()|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in) // copy_file_range where the file system has it
	if err == nil {
		err = out.Sync()
	}
	if e := out.Close(); err == nil {
		err = e
	}
	return err
}

// deleteCheckpoints removes checkpoints that the head does not keep. Only directories
// with the name of a step are ever removed, whatever the message says.
func (a *agent) deleteCheckpoints(e core.DeleteCheckpoints) {
	for _, p := range e.Paths {
		var step int64
		var attempt uint32
		base := filepath.Base(p)
		if n, err := fmt.Sscanf(base, "step-%d.a%d", &step, &attempt); n != 2 || err != nil || base != fmt.Sprintf("step-%d.a%d", step, attempt) || !filepath.IsAbs(p) {
			a.log.Error("not deleted: this is no checkpoint", "path", p, "job", e.Job)
			continue
		}
		if err := os.RemoveAll(p); err != nil {
			a.log.Warn("an old checkpoint cannot be removed", "path", p, "err", err)
		}
		if rel := inRecord(e.Job, p); rel != "" {
			_ = os.RemoveAll(filepath.Join(a.trees.root(e.Job), rel))
		}
	}
}

func diskKind(err error) errs.Kind {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errs.Exhausted
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return errs.Permission
	case errors.Is(err, fs.ErrNotExist):
		return errs.NotFound
	}
	return errs.Unknown
}
