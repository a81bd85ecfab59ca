package testkit

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a process of the Home: it has its LAUNCHER_HOME in its environment.
type Process struct {
	PID  int
	PPID int
	Args []string
	Env  []string
}

// Kind is the hidden command that the process is, "" when it is none.
func (p Process) Kind() string {
	if len(p.Args) > 1 && strings.HasSuffix(p.Args[0], "launcher") || len(p.Args) > 1 && p.Args[0] == "/proc/self/exe" {
		return p.Args[1]
	}
	return ""
}

// Processes finds every process of the Home, those of programs' private clusters below it
// too, zombies excepted.
func (h *Home) Processes() []Process {
	mark, private := []byte("LAUNCHER_HOME="+h.Dir+"\x00"), []byte("LAUNCHER_HOME="+h.Dir+"/local/")
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []Process
	for _, d := range dirs {
		env, err := os.ReadFile(d + "/environ")
		if env = append(env, 0); err != nil || !bytes.Contains(env, mark) && !bytes.Contains(env, private) {
			continue
		}
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 2 || f[0] == "Z" || f[0] == "X" {
			continue
		}
		cmd, _ := os.ReadFile(d + "/cmdline")
		pid, _ := strconv.Atoi(filepath.Base(d))
		ppid, _ := strconv.Atoi(f[1])
		out = append(out, Process{pid, ppid, strings.Split(strings.TrimRight(string(cmd), "\x00"), "\x00"), strings.Split(string(env), "\x00")})
	}
	return out
}

// PIDs gives the processes of a kind: head, head-supervise, node, supervise, agent.
func (h *Home) PIDs(kind string) []int {
	var out []int
	for _, p := range h.Processes() {
		if p.Kind() == kind {
			out = append(out, p.PID)
		}
	}
	return out
}

// Leaks lists what is left of the Home: processes, sockets, shared memory.
func (h *Home) Leaks() []string {
	var out []string
	for _, p := range h.Processes() {
		out = append(out, "process "+strconv.Itoa(p.PID)+" "+strings.Join(p.Args, " "))
	}
	_ = filepath.WalkDir(filepath.Dir(h.Dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			out = append(out, "socket "+path)
		}
		return nil
	})
	shm, _ := filepath.Glob("/dev/shm/*launcher*")
	for _, p := range shm {
		if st, err := os.Stat(p); err != nil || st.IsDir() { // where an ssh host of another test has its files
			continue
		}
		out = append(out, "shared memory "+p)
	}
	return out
}

// killAll ends every process of the Home.
func (h *Home) killAll() {
	for range 100 {
		ps := h.Processes()
		if len(ps) == 0 {
			return
		}
		for _, p := range ps {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
