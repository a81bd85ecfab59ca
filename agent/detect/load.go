package detect

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Others finds out how many cores other users keep busy.
type Others struct {
	root  string
	uid   int
	ticks int64           // of the machine, busy, at the last look
	seen  map[int]process // of the last look, if that asked who it is; else nil
	at    int64           // of the last look, nanoseconds; 0 = none
	level []int           // what the last looks gave, newest last
	busy  int
}

// process is what is known of one of another user's.
type process struct {
	parent int
	start  string
	own    int64 // ticks of its own
	reaped int64 // of its children that have ended
	cpu    int
}

const (
	tick = 100 // USER_HZ: the kernel tells user space ticks of 10 ms on every platform we run on
	// raiseAfter is how many looks in a row must see more, dropAfter less, before that counts.
	raiseAfter = 3
	dropAfter  = 6
	// roundUp is what part of a core counts as none.
	roundUp = 0.3
	// quiet is the part of a core that a machine may use in all without being looked at.
	quiet = 0.5
)

// NewOthers looks at the machine for processes that are not of this user.
func NewOthers(root string) *Others { return &Others{root: root, uid: os.Getuid()} }

// Look samples; now is in nanoseconds. It gives how many cores others keep busy, by the
// looks so far, and on which of them they were seen, as far as they are told.
func (o *Others) Look(now int64) (busy int, cores []int) {
	ticks, ok := busyTicks(o.root)
	past := float64(now-o.at) / 1e9
	first := o.at == 0
	if ok && !first && float64(ticks-o.ticks)/tick < quiet*past {
		// Next to nothing runs at all: nobody need be asked who it is.
		o.ticks, o.at, o.seen = ticks, now, nil
		return o.note(0), nil
	}
	known := o.seen != nil
	used, cores := o.scan(past)
	o.ticks, o.at = ticks, now
	if first || !known {
		return o.busy, nil // there is nothing to compare with yet
	}
	return o.note(used), cores
}

// note takes the cores that a look has seen busy.
func (o *Others) note(used float64) int {
	o.level = append(o.level, max(0, int(used+1-roundUp)))
	if len(o.level) > dropAfter {
		o.level = slices.Delete(o.level, 0, 1)
	}
	if n := len(o.level); n >= raiseAfter {
		o.busy = max(o.busy, slices.Min(o.level[n-raiseAfter:]))
	}
	if len(o.level) == dropAfter {
		o.busy = min(o.busy, slices.Max(o.level))
	}
	return o.busy
}

// scan adds up what other users' processes have used since the last scan, in cores.
func (o *Others) scan(past float64) (used float64, cores []int) {
	now := map[int]process{}
	names, _ := readNames(filepath.Join(o.root, "proc"))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		st, err := os.Stat(filepath.Join(o.root, "proc", name))
		if err != nil {
			continue
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok || int(sys.Uid) == o.uid {
			continue
		}
		p, thread, ok := parseStat(read(o.root, "/proc/"+name+"/stat"))
		if !ok || thread {
			continue
		}
		if sys.Uid == 0 { // it reaps everybody's
			p.reaped = 0
		}
		now[pid] = p
	}
	// What a child that has ended had used is its parent's now, and was counted before.
	counted := map[int]int64{}
	up := uptime(o.root)
	for pid, was := range o.seen {
		if p, ok := now[pid]; !ok || p.start != was.start {
			counted[was.parent] += was.own + was.reaped
		}
	}
	for pid, p := range now {
		was, ok := o.seen[pid]
		if ok = ok && was.start == p.start; !ok {
			was = process{}
			if began, err := strconv.ParseInt(p.start, 10, 64); err != nil || up-float64(began)/tick > past+1 {
				continue // it was there before, and could not be seen
			}
		}
		n := float64(p.own-was.own+max(0, p.reaped-was.reaped-counted[pid])) / tick / max(past, 0.01)
		if used += n; n >= quiet && !slices.Contains(cores, p.cpu) {
			cores = append(cores, p.cpu)
		}
	}
	o.seen = now
	slices.Sort(cores)
	return used, cores
}

// uptime is in seconds.
func uptime(root string) float64 {
	s, _, _ := strings.Cut(read(root, "/proc/uptime"), " ")
	v, _ := strconv.ParseFloat(s, 64)
	return v
}

// parseStat reads /proc/PID/stat.
func parseStat(s string) (p process, kernelThread, ok bool) {
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 37 { // the first is field 3
		return p, false, false
	}
	n := func(field int) int64 {
		v, _ := strconv.ParseInt(f[field-3], 10, 64)
		return v
	}
	const flagKernelThread = 0x00200000
	return process{parent: int(n(4)), start: f[22-3], own: n(14) + n(15), reaped: n(16) + n(17), cpu: int(n(39))}, n(9)&flagKernelThread != 0, true
}

// busyTicks is what all cores have been busy since boot with what processes do.
func busyTicks(root string) (int64, bool) {
	line, _, _ := strings.Cut(read(root, "/proc/stat"), "\n")
	f := strings.Fields(line)
	if len(f) < 4 || f[0] != "cpu" {
		return 0, false
	}
	sum := int64(0)
	for _, x := range f[1:4] { // user, nice, system
		v, err := strconv.ParseInt(x, 10, 64)
		if err != nil {
			return 0, false
		}
		sum += v
	}
	return sum, true
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// UserName is a user as people call him.
func UserName(root string, uid int) string {
	for line := range strings.Lines(read(root, "/etc/passwd")) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == strconv.Itoa(uid) {
			return f[0]
		}
	}
	return "user " + strconv.Itoa(uid)
}
