package slurm

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"launcher/backends"
	"launcher/backends/records"
	"launcher/internal/errs"
	"launcher/wire"
)

// Files of a job, NAME being that of the Slurm job, in clusters/CLUSTER/slurm.
const (
	recordExt = ".json"  // what is known of it
	nodesExt  = ".nodes" // what its agents are started with; 0600, it has the join key
	logExt    = ".log"   // what they print
)

// record is what is known here of one job.
type record struct {
	V     int           `json:"v"`
	Dir   string        `json:"dir"`
	Name  string        `json:"name"` // of the Slurm job: unlike its number it is never used again
	Token string        `json:"token"`
	Nodes []wire.NodeID `json:"nodes"`

	// In the file only.
	At       int64            `json:"at,omitempty"`       // when it was asked for, unix seconds
	Job      string           `json:"job,omitempty"`      // its number; none: asked for, and no answer is known
	Ran      bool             `json:"ran,omitempty"`      // it has been seen to run
	Hosts    []string         `json:"hosts,omitempty"`    // that it was given, node by node
	Stopped  bool             `json:"stopped,omitempty"`  // it was cancelled from here
	Unasked  bool             `json:"unasked,omitempty"`  // it is taken back, if it has not begun
	Beheaded string           `json:"beheaded,omitempty"` // the node that had its script is lost
	Step     *stepRecord      `json:"step,omitempty"`     // it is a step in an allocation that we did not make
	End      *backends.Status `json:"end,omitempty"`
	Apart    bool             `json:"apart,omitempty"`  // its nodes do not see the state directory
	Binary   string           `json:"binary,omitempty"` // that is brought to them then

	strays []string // jobs that are to be cancelled: twins of this one, or what is left of it
}

// stepRecord is the srun of a step.
type stepRecord struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	Host  string `json:"host"`
	In    string `json:"in"` // the job that it is in
}

func (r record) alloc() backends.Alloc {
	h, _ := json.Marshal(record{V: r.V, Dir: r.Dir, Name: r.Name, Token: r.Token, Nodes: r.Nodes})
	return backends.Alloc{Token: r.Token, Handle: h, Nodes: r.Nodes}
}

func (r record) path(ext string) string { return filepath.Join(r.Dir, r.Name+ext) }

var (
	wordRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$`)
	nameRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._ -]{0,100}$`)
)

// parseHandle reads a handle; anything else is not ours.
func parseHandle(h []byte) (record, bool) {
	var r record
	if json.Unmarshal(h, &r) != nil || r.V != 1 || !filepath.IsAbs(r.Dir) || !wordRE.MatchString(r.Name) || len(r.Nodes) == 0 {
		return record{}, false
	}
	return r, true
}

// dirOf is where a cluster's jobs are written down.
func (b *Backend) dirOf(cluster string) (string, error) {
	if !nameRE.MatchString(cluster) {
		return "", errs.New(errs.Invalid, "%q cannot name a directory", cluster)
	}
	home, err := filepath.Abs(b.home)
	if err != nil {
		return "", errs.Wrap(errs.Invalid, err, "the state directory")
	}
	return filepath.Join(home, "clusters", cluster, "slurm"), nil
}

// jobName is the name of the k-th job of a submission.
func jobName(token string, k int) string {
	if k == 0 {
		return "launcher-" + token
	}
	return "launcher-" + token + "." + strconv.Itoa(k)
}

// load reads a record from its file; ok is false when there is none.
func load(path string) (r record, ok bool, err error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, false, nil
	case err != nil:
		return r, false, diskError(err, path)
	}
	if err := json.Unmarshal(data, &r); err != nil || r.V != 1 || r.path(recordExt) != path {
		return r, false, errs.New(errs.Corrupt, "%s is not what was written there", path)
	}
	return r, true, nil
}

// ofToken reads the records of a submission, in order.
func ofToken(dir, token string) (out []record, err error) {
	for k := 0; ; k++ {
		r, ok, err := load(filepath.Join(dir, jobName(token, k)+recordExt))
		if err != nil || !ok {
			return out, err
		}
		out = append(out, r)
	}
}

// begin puts a record in place, whole and on disk: Slurm is asked after that.
func (r record) begin() error { return r.put(true) }

// write changes it. What is lost of that in a crash is found out again.
func (r record) write() error { return r.put(false) }

func (r record) put(sync bool) error {
	data, _ := json.Marshal(r)
	return writeWhole(r.path(recordExt), append(data, '\n'), sync)
}

func writeWhole(path string, data []byte, sync bool) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return diskError(err, dir)
	}
	if err := records.Write(path, data, sync); err != nil {
		return diskError(err, path)
	}
	return nil
}

// forget removes what was written of a job that never was.
func (r record) forget() {
	for _, ext := range []string{recordExt, nodesExt, logExt} {
		_ = os.Remove(r.path(ext))
	}
}

// lastLine is the end of what the job printed.
func (r record) lastLine() string {
	f, err := os.Open(r.path(logExt))
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 8 << 10
	if st, err := f.Stat(); err == nil && st.Size() > most {
		_, _ = f.Seek(-most, 2)
	}
	buf := make([]byte, most)
	n, _ := f.Read(buf)
	var said string
	for line := range strings.Lines(string(buf[:n])) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "hint:") && strings.HasPrefix(said, "error:") {
			said += "; " + line
			continue
		}
		// What Slurm says of a step that failed follows what failed.
		if line != "" && !strings.HasPrefix(line, "srun:") && !strings.HasPrefix(line, "slurmstepd:") || said == "" {
			said = line
		}
	}
	return strings.ToValidUTF8(said[:min(len(said), 600)], "?")
}

// complains is what a job that runs has printed, with what to do about it: while all is
// well it prints nothing.
func (r record) complains() string {
	said := r.lastLine()
	if said == "" {
		return ""
	}
	if strings.Contains(said, "execve()") {
		said += ": nodes must see the binary at the same path, or say shared_home = false in the pool"
	}
	return "Slurm job " + r.Job + " says: " + said
}

func diskError(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return errs.Wrap(errs.Permission, err, "the state directory").Hint("set LAUNCHER_HOME to a directory of yours that compute nodes see too")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errs.Wrap(errs.Exhausted, err, "no room in the state directory").Hint("make room there, or set LAUNCHER_HOME to a place with more")
	}
	return errs.Wrap(errs.Internal, err, "%s", path)
}
