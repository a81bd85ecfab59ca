package proc

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestParseStat(t *testing.T) {
	tail := " S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1"
	for name, want := range map[string]string{"(sh)": "sh", "(a b)": "a b", "(evil) R 1 1 1)": "evil) R 1 1 1", "()": "", "(new\nline)": "new\nline"} {
		s, err := parseStat([]byte("123 " + name + tail))
		if err != nil || s.Comm != want || s.PID != 123 || s.State != 'S' || s.Parent != 7 || s.Group != 8 || s.Session != 9 || s.Start != 4242 {
			t.Errorf("%q: %+v, %v", name, s, err)
		}
	}
	for _, bad := range []string{"", "123", "123 (sh", "123 (sh) S 1 2", "x (sh)" + tail, "123 (sh) S x" + tail, ")("} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
	me, err := ReadStat(os.Getpid())
	if err != nil || me.Parent != os.Getppid() {
		t.Errorf("this process: %+v, %v", me, err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("123 (sh) S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseStat(b) })
}

func TestDescend(t *testing.T) {
	all := []Stat{{PID: 1}, {PID: 10, Parent: 1}, {PID: 11, Parent: 10}, {PID: 12, Parent: 10}, {PID: 13, Parent: 12}, {PID: 20, Parent: 1},
		// The list is no snapshot: numbers used again can make a ring.
		{PID: 30, Parent: 31}, {PID: 31, Parent: 30}, {PID: 10, Parent: 13}}
	var got []int
	for _, s := range descend(10, all) {
		got = append(got, s.PID)
	}
	if !slices.Equal(got, []int{11, 12, 13}) {
		t.Errorf("below 10 are %v", got)
	}
	if got := descend(30, all); len(got) != 1 {
		t.Errorf("in a ring: %v", got)
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	mk := func(name string, mode os.FileMode) {
		if err := os.MkdirAll(dir+"/"+name[:strings.LastIndex(name, "/")], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/"+name, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	mk("a/tool", 0o644)
	mk("b/tool", 0o755)
	mk("work/bin/rel", 0o755)
	mk("c/only", 0o644)
	if err := os.MkdirAll(dir+"/a/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + dir + "/none:" + dir + "/a:" + dir + "/b:" + dir + "/c:bin"
	for _, tc := range []struct {
		name, want string
		errno      syscall.Errno
	}{
		{"tool", dir + "/b/tool", 0}, // the first that can be run
		{"only", "", syscall.EACCES},
		{"dir", "", syscall.ENOENT},
		{"rel", dir + "/work/bin/rel", 0}, // relative entries start at the working directory
		{"nothing", "", syscall.ENOENT},
		{"./x", "./x", 0},
	} {
		got, errno := Resolve(tc.name, []string{"PATH=/bin", path}, dir+"/work")
		if got != tc.want || errno != tc.errno {
			t.Errorf("%s: %q, %v; want %q, %v", tc.name, got, errno, tc.want, tc.errno)
		}
	}
	if got, errno := Resolve("sh", nil, "/"); errno != 0 || !strings.HasSuffix(got, "/sh") {
		t.Errorf("without PATH: %q, %v", got, errno)
	}
}

func TestCode(t *testing.T) {
	for status, want := range map[uint32][2]int32{0: {0, 0}, 3 << 8: {3, 0}, 9: {137, 9}, 15 | 0x80: {143, 15}} {
		code, sig := Ended{Status: syscall.WaitStatus(status)}.Code()
		if [2]int32{code, sig} != want {
			t.Errorf("status %#x is %d, %d; want %v", status, code, sig, want)
		}
	}
}
