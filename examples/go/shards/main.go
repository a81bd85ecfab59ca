// Command shards keeps a table in several actors, each of which has a share of the keys,
// and has tasks all over the cluster add to it. While they do, it kills actors: each begins
// anew from what it has written down, and the tasks do not notice.
//
//	go build -o shards ./examples/go/shards && ./shards -shards 4 -tasks 16 -kills 3
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"launcher"
)

var (
	shards = flag.Int("shards", 4, "number of actors")
	tasks  = flag.Int("tasks", 16, "number of tasks that add")
	adds   = flag.Int("adds", 200, "additions of each task")
	kills  = flag.Int("kills", 3, "actors that are killed meanwhile")
	dir    = flag.String("dir", "", "where the actors write down what they have; all nodes must see it (default: a new one)")
)

// Shard makes an actor that has a share of the keys.
var (
	Shard = launcher.Actor(open, launcher.MaxRestarts(-1))
	Add   = launcher.Method((*shard).Add, launcher.Retries(-1))
	Total = launcher.Method0((*shard).Total, launcher.Retries(-1))
)

// Fill is fill as a task.
var Fill = launcher.Func(fill)

// shard has the sums of some keys, and the file in which every addition is written down.
type shard struct {
	sums map[string]int
	seen map[string]bool // additions
	log  *os.File
}

// open reads what an earlier life of the actor has written.
func open(_ context.Context, path string) (*shard, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	s := &shard{sums: map[string]int{}, seen: map[string]bool{}, log: f}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var a Addition
		if n, err := fmt.Sscan(lines.Text(), &a.ID, &a.Key, &a.N); n == 3 && err == nil {
			s.apply(a)
		}
	}
	return s, nil
}

// Addition adds N to a key. Its ID tells one that comes again, after a restart, from a new
// one.
type Addition struct {
	ID, Key string
	N       int
}

func (s *shard) apply(a Addition) {
	s.seen[a.ID] = true
	s.sums[a.Key] += a.N
}

// Add gives the sum of the key.
func (s *shard) Add(_ context.Context, a Addition) (int, error) {
	if !s.seen[a.ID] {
		if _, err := fmt.Fprintln(s.log, a.ID, a.Key, a.N); err != nil {
			return 0, err
		}
		s.apply(a)
	}
	return s.sums[a.Key], nil
}

// Total is the sum of all keys.
func (s *shard) Total(context.Context) (int, error) {
	t := 0
	for _, n := range s.sums {
		t += n
	}
	return t, nil
}

// Close is called when the actor has no handles any more.
func (s *shard) Close() error { return s.log.Close() }

// Work is what a task is to do, and the handles of the actors that it needs for that.
type Work struct {
	Task, Adds int
	Table      []launcher.Handle[*shard]
}

// fill adds one to many keys, and gives how often.
func fill(ctx context.Context, w Work) (int, error) {
	refs := make([]launcher.Ref[int], w.Adds)
	for i := range refs {
		key := "key" + strconv.Itoa(i%50)
		h := fnv.New32a()
		_, _ = h.Write([]byte(key))
		refs[i] = Add.Submit(ctx, w.Table[int(h.Sum32())%len(w.Table)], Addition{fmt.Sprintf("%d-%d", w.Task, i), key, 1})
	}
	_, err := launcher.Get(ctx, refs...)
	return len(refs), err
}

func main() {
	launcher.Main(run)
}

func run(ctx context.Context) error {
	flag.Parse()
	if *dir == "" {
		made, err := os.MkdirTemp("", "shards")
		if err != nil {
			return err
		}
		defer os.RemoveAll(made)
		*dir = made
	}
	var table []launcher.Handle[*shard]
	for i := range *shards {
		h, err := Shard.New(ctx, filepath.Join(*dir, strconv.Itoa(i)))
		if err != nil {
			return err
		}
		table = append(table, h)
	}
	var fills []launcher.Ref[int]
	for i := range *tasks {
		fills = append(fills, Fill.Submit(ctx, Work{i, *adds, table}, launcher.CPU(0.5)))
	}
	for i := range *kills {
		if err := table[i%len(table)].Ready(ctx); err != nil {
			return err
		}
		if err := table[i%len(table)].Restart(); err != nil {
			return err
		}
	}
	counts, err := launcher.Get(ctx, fills...)
	if err != nil {
		return err
	}
	added, total := 0, 0
	for _, n := range counts {
		added += n
	}
	var each []string
	for _, h := range table {
		n, err := Total.Submit(ctx, h).Get(ctx)
		if err != nil {
			return err
		}
		total += n
		each = append(each, strconv.Itoa(n))
	}
	fmt.Printf("%d additions, the table has %d: %s\n", added, total, strings.Join(each, " + "))
	return nil
}
