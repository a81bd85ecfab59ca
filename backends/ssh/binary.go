package ssh

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"launcher/internal/errs"
)

// arches are the architectures that hosts may have, as Go names them.
var arches = []string{"amd64", "arm64"}

// binary is a launcher binary that hosts of one architecture are given.
type binary struct {
	path, sum string
	size      int64
	mod       time.Time
}

// shelf finds binaries and packs them, each once for all hosts that want it at a time.
type shelf struct {
	own   string   // the running binary
	dirs  []string // where those of other architectures may lie
	known map[string]binary

	mu    sync.Mutex // guards what follows, and known
	packs map[pack]*packed
}

type pack struct {
	sum, how string
	from     int64
}

type packed struct {
	once  sync.Once
	data  []byte
	err   error
	users int // guarded by shelf.mu
}

func newShelf(own, home string) *shelf {
	dir := filepath.Dir(own)
	return &shelf{own: own, dirs: []string{dir, filepath.Join(dir, "dist"), filepath.Join(dir, "..", "dist"), filepath.Join(home, "cache")},
		known: map[string]binary{}, packs: map[pack]*packed{}}
}

// name of a binary for another architecture, as releases name it.
func fileName(arch string) string { return "launcher-linux-" + arch }

// get gives the binary for an architecture; NotFound when there is none here.
func (s *shelf) get(arch string) (binary, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.known[arch]; ok {
		if fi, err := os.Stat(b.path); err == nil && fi.Size() == b.size && fi.ModTime().Equal(b.mod) {
			return b, nil
		}
	}
	paths := []string{}
	if runtime.GOOS == "linux" && arch == runtime.GOARCH {
		paths = append(paths, s.own)
	}
	for _, d := range s.dirs {
		paths = append(paths, filepath.Join(d, fileName(arch)))
	}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		h := sha256.New()
		fi, err := f.Stat()
		var n int64
		if err == nil {
			n, err = io.Copy(h, f)
		}
		f.Close()
		if err != nil {
			return binary{}, errs.Wrap(errs.Unavailable, err, "reading %s", p)
		}
		b := binary{path: p, sum: hex.EncodeToString(h.Sum(nil)), size: n, mod: fi.ModTime()}
		s.known[arch] = b
		return b, nil
	}
	return binary{}, errs.New(errs.NotFound, "there is no launcher binary for %s machines here", arch).
		Hint("`make release` makes %s; put it beside %s or into %s", fileName(arch), s.own, s.dirs[len(s.dirs)-1])
}

// pack gives what is to be sent of a binary from an offset on; done says that it is not
// needed any more.
func (s *shelf) pack(b binary, how string, from int64) (data []byte, done func(), err error) {
	key := pack{b.sum, how, from}
	s.mu.Lock()
	p := s.packs[key]
	if p == nil {
		p = &packed{}
		s.packs[key] = p
	}
	p.users++
	s.mu.Unlock()
	p.once.Do(func() { p.data, p.err = compress(b, how, from) })
	done = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if p.users--; p.users == 0 {
			delete(s.packs, key)
		}
	}
	if p.err != nil {
		done()
		return nil, nil, p.err
	}
	return p.data, done, nil
}

func compress(b binary, how string, from int64) ([]byte, error) {
	f, err := os.Open(b.path)
	if err != nil {
		return nil, errs.Wrap(errs.NotFound, err, "the binary for the host")
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "%s", b.path)
	}
	var out bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "zstd":
		w, err = zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest))
	case "gzip":
		w, err = gzip.NewWriterLevel(&out, gzip.BestSpeed)
	default:
		w = plain{&out}
	}
	if err == nil {
		_, err = io.Copy(w, io.LimitReader(f, b.size-from))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "packing %s", b.path)
	}
	return out.Bytes(), nil
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }
