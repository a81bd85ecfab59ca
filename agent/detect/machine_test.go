package detect

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"launcher/internal/errs"
	"launcher/shm/cgroup"
	"launcher/wire"
)

// extract lays a recorded tree out and gives its root.
func extract(t *testing.T, a *txtar.Archive) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range a.Files {
		p := filepath.Join(root, f.Name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestRecordedTrees(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 7 {
		t.Fatalf("recorded trees: %v, %v", files, err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			root := extract(t, a)
			c, err := ReadCPU(root)
			if err != nil {
				t.Fatal(err)
			}
			m, err := ReadMemory(root)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{
				"cores":  ranges(c.Cores),
				"quota":  strconv.FormatFloat(c.Quota, 'f', -1, 64),
				"memory": fmt.Sprint(m.Total, m.Limit, m.Room),
				"oom":    fmt.Sprint(OOMKills(root)),
				"load":   strconv.FormatFloat(Load(root), 'f', -1, 64),
			}
			seen := 0
			for line := range strings.Lines(string(a.Comment)) {
				key, want, _ := strings.Cut(strings.TrimSpace(line), " ")
				if have, ok := got[key]; ok {
					seen++
					if have != want {
						t.Errorf("%s is %s, want %s", key, have, want)
					}
				}
			}
			if seen != len(got) {
				t.Errorf("%d expectations in the archive, want %d", seen, len(got))
			}
		})
	}
}

// ranges is the kernel's form of a list.
func ranges(l []int) string {
	var out []string
	for i := 0; i < len(l); {
		j := i
		for j+1 < len(l) && l[j+1] == l[j]+1 {
			j++
		}
		if i == j {
			out = append(out, strconv.Itoa(l[i]))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", l[i], l[j]))
		}
		i = j + 1
	}
	return strings.Join(out, ",")
}

func TestNothingThere(t *testing.T) {
	root := t.TempDir()
	if _, err := ReadCPU(root); !errs.Is(err, errs.Unavailable) {
		t.Errorf("cores of nothing: %v", err)
	}
	if _, err := ReadMemory(root); !errs.Is(err, errs.Unavailable) {
		t.Errorf("memory of nothing: %v", err)
	}
}

func TestCPUAmount(t *testing.T) {
	for _, tc := range []struct {
		cpu  CPU
		want int64
	}{
		{CPU{Cores: []int{0, 1, 2, 3}}, 4 * wire.Unit},
		{CPU{Cores: []int{0, 1, 2, 3}, Quota: 1.5}, wire.Unit * 3 / 2},
		{CPU{Cores: []int{5}, Quota: 8}, wire.Unit},
	} {
		if got := tc.cpu.Amount(); got != tc.want {
			t.Errorf("%+v is %d, want %d", tc.cpu, got, tc.want)
		}
	}
	c := CPU{Cores: []int{1, 2, 3}, Quota: 2}
	if got := c.Limit([]int{3, 9, 1}); !slices.Equal(got.Cores, []int{1, 3}) || got.Quota != 2 {
		t.Errorf("limited: %+v", got)
	}
	if got := c.Limit(nil); len(got.Cores) != 3 {
		t.Errorf("not limited: %+v", got)
	}
}

func TestParseList(t *testing.T) {
	for in, want := range map[string]string{"0-3,8,10-11\n": "0-3,8,10-11", "": "", "5": "5", "3,1,2,2": "1-3"} {
		got, err := cgroup.ParseList(in)
		if err != nil || ranges(got) != want {
			t.Errorf("%q gives %v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"a", "1-", "-1", "1-x", "99999999999"} {
		if got, err := cgroup.ParseList(bad); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("0-3,8,10-11")
	f.Add("65535-0,1-1")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := cgroup.ParseList(s)
		if err == nil && !slices.IsSorted(l) {
			t.Errorf("%q gives %v", s, l)
		}
	})
}
