package journal

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const childEnv = "LAUNCHER_TEST_JOURNAL"

// TestMain turns the test binary into a writer that is there to be killed: it appends,
// snapshots now and then, and prints the number of each record once it is safe.
func TestMain(m *testing.M) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	j, rec, err := Open(dir, Options{SegmentSize: 4000})
	if err == nil {
		err = checkPrefix(rec)
	}
	for err == nil {
		var batch [][]byte
		for s := j.Safe() + 1; s <= j.Safe()+5; s++ {
			batch = append(batch, val(s))
		}
		var seq uint64
		if seq, err = j.Append(batch...); err == nil {
			err = j.Wait(context.Background(), seq)
		}
		if err == nil {
			fmt.Println(seq)
			if seq%100 == 0 {
				err = j.Snapshot(seq, []byte(fmt.Sprint("state ", seq)))
			}
		}
	}
	fmt.Println("error:", err)
	os.Exit(1)
}

// TestKilled kills a writer with SIGKILL again and again, at moments that have nothing to
// do with what it is doing. Whatever it had been told to be safe is there.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(5, 6))
	for life := range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		var last uint64
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			line := lines.Text()
			if strings.HasPrefix(line, "error:") {
				t.Fatalf("life %d: the writer says %s", life, line)
			}
			if last, err = strconv.ParseUint(line, 10, 64); err != nil {
				t.Fatal(err)
			}
			if n == 0 { // it writes: let it, for a while
				time.AfterFunc(time.Duration(rnd.IntN(25_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
			}
		}
		_ = cmd.Wait()
		if !stop.Stop() {
			t.Fatalf("life %d: the writer wrote nothing", life)
		}
		rec, err := Load(dir)
		if err == nil {
			err = checkPrefix(rec)
		}
		if err != nil {
			t.Fatalf("life %d: %v", life, err)
		}
		if rec.Last() < last {
			t.Fatalf("life %d: record %d was safe, recovered only up to %d", life, last, rec.Last())
		}
	}
}
