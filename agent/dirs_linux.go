package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/tasks"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/session"
)

const (
	// maxDirs bounds the directories that are kept in the cache while no job uses them.
	maxDirs = 8
	// packBound is how long another node may take to pack a directory.
	packBound = 5 * time.Minute
)

// dirs are the directories that workers start in: those of their programs, and the
// working_dirs of tasks, which come from the node that a task was first given to when this
// one does not see them.
type dirs struct {
	a *agent

	mu   sync.Mutex
	of   map[dirKey]*dir
	told map[dirKey]bool // what the job was told to be missing here; guarded by mu
}

type dirKey struct {
	job  string
	of   uint32 // number of the node whose directory it is; 0 = each node's own
	path string
}

type dir struct {
	work sync.Mutex // held while it is packed or brought, which may take long
	over bool       // guarded by work, and so is all below
	at   string     // where it is here; "" = not known yet
	held *os.File   // keeps what is in the cache there
	pack *os.File   // what other nodes are given, as it was when the first one asked
	is   wire.DirHas
}

func (d *dirs) entry(k dirKey) *dir {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of[k] == nil {
		d.of[k] = &dir{}
	}
	return d.of[k]
}

// forget: a job is over.
func (d *dirs) forget(job string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, x := range d.of {
		if k.job != job {
			continue
		}
		delete(d.of, k)
		d.a.wg.Go(func() {
			x.work.Lock()
			defer x.work.Unlock()
			x.over = true
			for _, f := range []*os.File{x.held, x.pack} {
				if f != nil {
					f.Close()
				}
			}
		})
	}
	for k := range d.told {
		if k.job == job {
			delete(d.told, k)
		}
	}
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir() && filepath.IsAbs(path)
}

// place gives the directory that workers of a key start in, and the ones in which they look
// for modules. The program's own are not brought here: it is told which are missing.
func (d *dirs) place(ctx context.Context, k tasks.Key) (string, []string, error) {
	path := splitPath(k.Path)
	at := k.Dir
	switch {
	case k.DirOf == 0 && !isDir(k.Dir):
		if at = d.a.cfg.Dir; k.Dir == "" {
			break // a program that does not say
		}
		d.missing(k.Job, k.Dir, "its tasks start in "+at+" there; give them a runtime_env with a working_dir, which is brought to every node")
	case k.DirOf == 0:
	case k.DirOf == d.a.links.number.Load():
		if !isDir(k.Dir) {
			return "", nil, errs.New(errs.NotFound, "node %s has no directory %s, the working_dir of a task", d.a.cfg.Node, k.Dir)
		}
	default:
		var err error
		if at, err = d.bring(ctx, dirKey{k.Job, k.DirOf, k.Dir}); err != nil {
			return "", nil, err
		}
	}
	for i, p := range path {
		if below, ok := strings.CutPrefix(p+"/", k.Dir+"/"); ok && k.DirOf != 0 {
			path[i] = filepath.Join(at, below)
		} else if _, err := os.Stat(p); err != nil && p != k.Dir {
			d.missing(k.Job, p, "its tasks do not find modules of that directory there; give them a runtime_env with a working_dir, which is brought to every node")
		}
	}
	return at, path, nil
}

// missing tells the drivers of a job, once, that this node does not have a directory of theirs.
func (d *dirs) missing(job, path, so string) {
	k := dirKey{job: job, path: path}
	d.mu.Lock()
	told := d.told[k]
	d.told[k] = true
	d.mu.Unlock()
	if !told {
		d.a.log.Warn("a directory of a program is not here", "job", job, "dir", path)
		d.a.sdk.tell(job, "node "+string(d.a.cfg.Node)+" does not have the program's directory "+path+": "+so)
	}
}

// bring finds the directory of another node: at the same path if it is that very one, else
// in the cache, else it is fetched.
func (d *dirs) bring(ctx context.Context, k dirKey) (string, error) {
	x := d.entry(k)
	x.work.Lock()
	defer x.work.Unlock()
	if x.over {
		return "", errs.New(errs.Cancelled, "the job of the directory is over")
	}
	if x.at != "" && isDir(x.at) {
		return x.at, nil
	}
	st, err := d.a.links.stream(ctx, k.of, 0, wire.StreamPrograms)
	if err == nil {
		defer st.Close()
		stop := context.AfterFunc(ctx, func() { _ = st.Close() })
		defer stop()
		x.at, x.held, err = d.fetch(st, k)
	}
	if err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "node %s does not see the working_dir %s, and it did not come from the node that has it", d.a.cfg.Node, k.path)
	}
	return x.at, nil
}

// askNode sends one message and reads the answer.
func askNode[T any](st *session.Stream, typ uint16, m any, want uint16, bound time.Duration) (is T, err error) {
	_ = st.SetWriteDeadline(time.Now().Add(writeBound))
	if err := st.WriteMsg(typ, m); err != nil {
		return is, err
	}
	_ = st.SetReadDeadline(time.Now().Add(bound))
	got, body, err := st.ReadMsg()
	if err != nil {
		return is, errs.Wrap(errs.Unavailable, err, "no answer of the other node")
	}
	switch got {
	case want:
		return is, wire.Unmarshal(body, &is)
	case wire.MsgError:
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err != nil {
			return is, err
		}
		return is, w.FromWire()
	}
	return is, errs.New(errs.Corrupt, "a message of type %#x where %#x is due", got, want)
}

func (d *dirs) fetch(st *session.Stream, k dirKey) (string, *os.File, error) {
	is, err := askNode[wire.DirIs](st, wire.MsgDir, wire.Dir{Job: k.job, Path: k.path}, wire.MsgDirIs, writeBound)
	if err != nil {
		return "", nil, err
	}
	if strings.HasPrefix(is.Token, bundle.TokenPrefix) && filepath.Base(is.Token) == is.Token {
		if _, err := os.Lstat(filepath.Join(k.path, is.Token)); err == nil {
			return k.path, nil, nil
		}
	}
	has, err := askNode[wire.DirHas](st, wire.MsgDirWanted, wire.DirWanted{}, wire.MsgDirHas, packBound)
	if err != nil {
		return "", nil, err
	}
	if sum, err := hex.DecodeString(has.Sum); err != nil || len(sum) != sha256.Size {
		return "", nil, errs.New(errs.Corrupt, "a directory with the sum %q", has.Sum)
	}
	cache := filepath.Join(d.a.cfg.CacheDir, "dirs")
	to := filepath.Join(cache, has.Sum)
	if f := hold(to); f != nil {
		return to, f, nil
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", nil, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	raw, err := os.CreateTemp(cache, ".new-*")
	if err != nil {
		return "", nil, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	defer raw.Close()
	_ = os.Remove(raw.Name())
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(raw, h), io.LimitReader(patient{st}, has.Size))
	switch {
	case err != nil:
		return "", nil, errs.Wrap(errs.Unavailable, err, "bringing a directory here")
	case n != has.Size || hex.EncodeToString(h.Sum(nil)) != has.Sum:
		return "", nil, errs.New(errs.Corrupt, "a directory came with %d of %d bytes, or with others than it was said to have", n, has.Size)
	}
	if _, err := raw.Seek(0, io.SeekStart); err != nil {
		return "", nil, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	tmp, err := os.MkdirTemp(cache, ".new-*")
	if err != nil {
		return "", nil, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	defer os.RemoveAll(tmp) // nothing, once it has its name
	if err := bundle.Unpack(raw, tmp); err != nil {
		return "", nil, err
	}
	err = os.Rename(tmp, to) // or another agent of this machine was faster
	f := hold(to)
	if f == nil {
		return "", nil, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	d.tidy(cache)
	return to, f, nil
}

// hold keeps a directory of the cache from being removed; nil = it is not there.
func hold(path string) *os.File {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil || !isDir(path) { // it is being removed
		f.Close()
		return nil
	}
	_ = os.Chtimes(path, time.Now(), time.Now()) // used now
	return f
}

// tidy removes those directories from the cache that were not used for longest, and what is
// left of one whose fetching an agent's end broke off.
func (d *dirs) tidy(cache string) {
	list, _ := os.ReadDir(cache)
	var all []fs.FileInfo
	for _, e := range list {
		if i, err := e.Info(); err == nil && (i.Name()[0] != '.' || time.Since(i.ModTime()) > time.Hour) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b fs.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	for _, i := range all[min(len(all), maxDirs):] {
		path := filepath.Join(cache, i.Name())
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil { // no agent uses it
			if err := os.RemoveAll(path); err != nil {
				d.a.log.Warn("the cache of directories", "err", err)
			}
		}
		f.Close()
	}
}

// serve answers another node about a directory of this one.
func (d *dirs) serve(ctx context.Context, st *session.Stream, m wire.Dir) error {
	if !isDir(m.Path) {
		return errs.New(errs.NotFound, "node %s has no directory %s, the working_dir of a task", d.a.cfg.Node, m.Path)
	}
	var is wire.DirIs
	if f, err := os.CreateTemp(m.Path, bundle.TokenPrefix+"*"); err == nil {
		f.Close()
		is.Token = filepath.Base(f.Name())
		defer os.Remove(f.Name())
	}
	_ = st.SetReadDeadline(time.Now().Add(writeBound))
	if err := st.WriteMsg(wire.MsgDirIs, is); err != nil {
		return err
	}
	typ, _, err := st.ReadMsg()
	if err == io.EOF {
		return nil // it sees the directory
	}
	if err != nil {
		return err
	}
	if typ != wire.MsgDirWanted {
		return errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgDirWanted)
	}
	return d.give(ctx, st, dirKey{m.Job, d.a.links.number.Load(), m.Path})
}

func (d *dirs) give(ctx context.Context, st *session.Stream, k dirKey) error {
	x := d.entry(k)
	x.work.Lock()
	defer x.work.Unlock()
	if x.over {
		return errs.New(errs.Cancelled, "the job of the directory is over")
	}
	if x.pack == nil {
		f, is, err := d.packed(ctx, k.path)
		if err != nil {
			return err
		}
		x.pack, x.is = f, is
	}
	if err := st.WriteMsg(wire.MsgDirHas, x.is); err != nil {
		return err
	}
	return sendFile(st, x.pack, x.is.Size)
}

// packed packs a directory into a file without a name.
func (d *dirs) packed(ctx context.Context, path string) (*os.File, wire.DirHas, error) {
	var is wire.DirHas
	cache := filepath.Join(d.a.cfg.CacheDir, "dirs")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, is, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	f, err := os.CreateTemp(cache, ".new-*")
	if err != nil {
		return nil, is, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	_ = os.Remove(f.Name())
	h := sha256.New()
	if err := bundle.Pack(ctx, io.MultiWriter(f, h), path); err != nil {
		f.Close()
		return nil, is, err
	}
	is.Sum = hex.EncodeToString(h.Sum(nil))
	if is.Size, err = f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return nil, is, errs.Wrap(errs.Exhausted, err, "the cache of directories")
	}
	return f, is, nil
}

// sendFile writes a file behind the message that says how long it is.
func sendFile(st *session.Stream, f *os.File, size int64) error {
	buf := make([]byte, peerBuffer)
	for at := int64(0); at < size; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if n == 0 {
			return errs.Wrap(errs.Unavailable, err, "reading %s", f.Name())
		}
		_ = st.SetWriteDeadline(time.Now().Add(writeBound))
		if _, err := st.Write(buf[:n]); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}
