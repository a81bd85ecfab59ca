package detect

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary report what it detects, or take memory, inside of a
// control group.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "report":
			os.Exit(reportSelf())
		case "hog":
			var keep [][]byte
			for range 1024 {
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				keep = append(keep, b)
			}
			os.Exit(len(keep) % 2)
		}
	}
	os.Exit(m.Run())
}

type report struct {
	CPU    CPU
	Memory Memory
	OOM    int64
}

func reportSelf() int {
	var r report
	var err error
	if r.CPU, err = ReadCPU("/"); err == nil {
		r.Memory, err = ReadMemory("/")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r.OOM = OOMKills("/")
	json.NewEncoder(os.Stdout).Encode(r)
	return 0
}

func TestHere(t *testing.T) {
	c, err := ReadCPU("/")
	if err != nil {
		t.Fatal(err)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	if len(c.Cores) == 0 || len(c.Cores) > set.Count() || c.Amount() <= 0 {
		t.Errorf("cores %+v, the affinity has %d", c, set.Count())
	}
	m, err := ReadMemory("/")
	if err != nil || m.Total <= 0 || m.Room <= 0 || m.Room > m.Total {
		t.Errorf("memory %+v, %v", m, err)
	}
	if Hostname() == "" {
		t.Error("no host name")
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil && len(b) > 0 && Load("/") < 0 {
		t.Error("a negative load")
	}
}

// group makes a version 1 control group for each controller, with files written, and
// gives a command prefix that enters them.
func group(t *testing.T, set map[string]map[string]string) (enter string) {
	t.Helper()
	name := fmt.Sprintf("launcher-test-%d", os.Getpid())
	for controller, files := range set {
		dir := filepath.Join("/sys/fs/cgroup", controller, name)
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", controller, "cgroup.procs")); err != nil {
			t.Skipf("no version 1 controller %s on this machine", controller)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skipf("cannot make a control group: %v", err)
		}
		t.Cleanup(func() {
			// Its last process may just be leaving.
			for range 500 {
				if err := os.Remove(dir); err == nil {
					return
				}
				time.Sleep(10 * time.Millisecond) // sleep: bounded poll
			}
			t.Errorf("%s cannot be removed", dir)
		})
		for f, v := range files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(v), 0); err != nil {
				t.Fatalf("setting %s: %v", f, err)
			}
		}
		enter += "echo $$ > " + filepath.Join(dir, "cgroup.procs") + " && "
	}
	return enter
}

func TestRootVersion1ForReal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("control groups can be made by root only")
	}
	all, err := ReadCPU("/")
	if err != nil {
		t.Fatal(err)
	}
	core := all.Cores[len(all.Cores)-1]
	const limit = 256 << 20
	enter := group(t, map[string]map[string]string{
		"cpu":    {"cpu.cfs_quota_us": "50000"},
		"cpuset": {"cpuset.cpus": fmt.Sprint(core), "cpuset.mems": "0"},
		"memory": {"memory.limit_in_bytes": fmt.Sprint(limit)},
	})
	run := func(what string) ([]byte, error) {
		cmd := exec.Command("sh", "-c", enter+`exec "$0" `+what, "/proc/"+fmt.Sprint(os.Getpid())+"/exe")
		cmd.Stderr = os.Stderr
		return cmd.Output()
	}
	ask := func() (r report) {
		out, err := run("report")
		if err != nil {
			t.Fatalf("reporting from inside: %v", err)
		}
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := ask()
	if !slices.Equal(r.CPU.Cores, []int{core}) || r.CPU.Quota != 0.5 || r.Memory.Limit != limit || r.Memory.Total != limit || r.Memory.Room <= 0 || r.Memory.Room > limit {
		t.Errorf("inside of the group: %+v", r)
	}
	if r.OOM != 0 {
		t.Errorf("%d processes killed before any took too much", r.OOM)
	}
	if _, err := run("hog"); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("a process that takes 1 GiB in a group of %d bytes: %v, want it killed", limit, err)
	}
	if r := ask(); r.OOM != 1 {
		t.Errorf("after one was killed the count is %d", r.OOM)
	}
}
