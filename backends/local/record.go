package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"launcher/backends"
	"launcher/backends/records"
	"launcher/wire"
)

// markVar is in the environment of everything a node starts that does not clear it. It
// is how what is left of a node is found when its guard was killed.
const markVar = "LAUNCHER_ALLOC"

// record is an allocation: what is in ID.EPOCH.json, and the handle.
type record struct {
	V     int         `json:"v"`
	Dir   string      `json:"dir"` // the cluster's nodes directory
	Token string      `json:"token"`
	Node  wire.NodeID `json:"node"`
	Epoch wire.Epoch  `json:"epoch"`
	PID   int         `json:"pid"`
	Start uint64      `json:"start"` // of the process, in the kernel's ticks since boot
	Boot  string      `json:"boot"`  // which boot of the machine
	Why   string      `json:"why,omitempty"`
}

// end is what is in ID.EPOCH.end.
type end struct {
	State backends.AllocState `json:"state"`
	Why   string              `json:"why"`
}

func (e end) status() backends.Status { return backends.Status{State: e.State, Why: e.Why} }

func (r record) path(ext string) string {
	return filepath.Join(r.Dir, string(r.Node)+"."+strconv.FormatUint(uint64(r.Epoch), 10)+ext)
}

func (r record) key() string { return r.path("") }

// mark is unique for the allocation: its process's start time and pid are in it only by
// the token, which is used once.
func (r record) mark() string { return fmt.Sprintf("%s/%s.%d", r.Token, r.Node, r.Epoch) }

func (r record) alloc() backends.Alloc {
	h, _ := json.Marshal(r)
	return backends.Alloc{Token: r.Token, Handle: h, Nodes: []wire.NodeID{r.Node}}
}

// parseHandle reads a handle; anything else is not ours.
func parseHandle(h []byte) (record, bool) {
	var r record
	if json.Unmarshal(h, &r) != nil || r.V != 1 || r.PID <= 1 || r.Node == "" || !filepath.IsAbs(r.Dir) ||
		strings.ContainsRune(string(r.Node), '/') {
		return record{}, false
	}
	return r, true
}

// identify fills in which process it is.
func (r *record) identify(pid int) {
	r.PID, r.Boot = pid, bootID()
	r.Start, _, _ = procStat(pid)
}

// alive reports whether the process of the record is there, and is not another with its number.
func (r record) alive() bool {
	start, state, ok := procStat(r.PID)
	return ok && start == r.Start && state != 'Z' && state != 'X' && r.Boot == bootID()
}

// signal sends SIGTERM, or SIGKILL, to the guard.
func (r record) signal(kill bool) {
	sig := syscall.SIGTERM
	if kill {
		sig = syscall.SIGKILL
	}
	signalProcess(r, sig)
}

// marked is the processes of the allocation that carry its mark.
func (r record) marked() []int { return markedProcesses(markVar + "=" + r.mark()) }

func killAll(pids []int) {
	for _, p := range pids {
		syscall.Kill(p, syscall.SIGKILL)
	}
}

// write puts the record on disk, whole.
func (r record) write() error {
	b, _ := json.Marshal(r)
	path := r.path(".json")
	if err := records.Write(path, append(b, '\n'), true); err != nil {
		return diskError(err, path)
	}
	return nil
}

// readRecords reads all allocations of a cluster; a directory that is not there has none.
func readRecords(dir string) ([]record, error) {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, diskError(err, dir)
	}
	var out []record
	for _, e := range ents {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // it was removed a moment ago
		}
		if r, ok := parseHandle(b); ok && r.Dir == dir {
			out = append(out, r)
		}
	}
	return out, nil
}

func (r record) markStopped() error {
	f, err := os.OpenFile(r.path(".stop"), os.O_CREATE|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the cluster's files are gone, and with them everyone who would read it
	}
	if err != nil {
		return diskError(err, r.path(".stop"))
	}
	r.forgotten(".stop")
	return f.Close()
}

// forgotten removes what was just made beside a record that is gone: nobody else would.
func (r record) forgotten(ext string) {
	if _, err := os.Stat(r.path(".json")); errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(r.path(ext))
	}
}

func (r record) stopped() bool {
	_, err := os.Stat(r.path(".stop"))
	return err == nil
}

// verdict says how the node ended. st is nil when it was not our child: then no exit
// status is known.
func (r record) verdict(st *os.ProcessState) end {
	switch {
	case r.stopped():
		return end{backends.Done, "ended as asked"}
	case st == nil:
		return end{backends.Lost, fmt.Sprintf("process %d is gone", r.PID)}
	case st.Success():
		return end{backends.Done, "ended by itself"}
	}
	log := filepath.Join(r.Dir, string(r.Node), "agent.log")
	said := ""
	if b, err := os.ReadFile(log); err == nil { // the guard's last words are at its end
		const word = "\nerror: "
		if i := strings.LastIndex(string(b), word); i >= 0 {
			last, _, _ := strings.Cut(string(b[i+len(word):]), "\n")
			said = ": " + last
		}
	}
	return end{backends.Failed, fmt.Sprintf("process %d ended: %s%s; see %s", r.PID, st, said, log)}
}

func (r record) readEnd() (end, bool) {
	b, err := os.ReadFile(r.path(".end"))
	var e end
	return e, err == nil && json.Unmarshal(b, &e) == nil && e.State.Ended()
}

// writeEnd writes down how the node ended, unless somebody has: an end that was told
// once is the one that is told for ever.
func (r record) writeEnd(e end) end {
	b, _ := json.Marshal(e)
	f, err := os.CreateTemp(r.Dir, ".tmp-*")
	if err != nil {
		return e // the cluster's files are gone
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if cerr := f.Close(); err != nil || cerr != nil {
		return e
	}
	if os.Link(f.Name(), r.path(".end")) != nil {
		if old, ok := r.readEnd(); ok {
			return old
		}
	}
	r.forgotten(".end")
	return e
}
