// Command wordcount counts the words of a text corpus by map and reduce. Each map task
// counts one part of the text and gives one table for each reducer, by the hash of the
// word; each reduce task adds up its tables. The tables go from the map tasks to the
// reduce tasks without passing through this program.
//
//	go build -o wordcount ./examples/go/wordcount && ./wordcount -parts 16 -reducers 4
package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"

	"launcher"
)

var (
	parts    = flag.Int("parts", 8, "parts of the corpus, one map task each")
	words    = flag.Int("words", 50_000, "words of each part")
	reducers = flag.Int("reducers", 3, "number of reduce tasks")
	check    = flag.Bool("check", false, "compare with a count that is done here")
)

// Table has how often each word was seen.
type Table map[string]int

// Part is a part of the text and among how many reducers its words are divided.
type Part struct {
	Text     []byte
	Reducers int
}

var (
	// Count is the map task: one table for each reducer.
	Count = launcher.Func(count)
	// Merge is the reduce task.
	Merge = launcher.Func(merge)
)

func count(_ context.Context, p Part) ([]Table, error) {
	out := make([]Table, p.Reducers)
	for i := range out {
		out[i] = Table{}
	}
	for _, word := range bytes.Fields(p.Text) {
		h := fnv.New32a()
		h.Write(word)
		out[h.Sum32()%uint32(p.Reducers)][string(word)]++
	}
	return out, nil
}

func merge(_ context.Context, tables []Table) (Table, error) {
	sum := Table{}
	for _, t := range tables {
		for word, n := range t {
			sum[word] += n
		}
	}
	return sum, nil
}

// corpus makes a part of the text: made-up words, few of them often.
func corpus(part, words int) []byte {
	r := rand.New(rand.NewPCG(uint64(part), 1))
	zipf := rand.NewZipf(r, 1.3, 2, 5000)
	var text []byte
	for i := range words {
		text = append(text, name(zipf.Uint64())...)
		text = append(text, " \n"[min(1, (i+1)%12/11)])
	}
	return text
}

// name gives the nth made-up word.
func name(n uint64) string {
	syllables := []string{"ka", "lo", "mi", "ru", "te", "sa", "no", "vi"}
	word := syllables[n%8]
	for n /= 8; n > 0; n /= 8 {
		word += syllables[n%8]
	}
	return word
}

func main() {
	launcher.Main(run)
}

func run(ctx context.Context) error {
	flag.Parse()
	// columns[r] has the tables that reducer r adds up.
	columns := make([][]launcher.Ref[Table], *reducers)
	for i := range *parts {
		tables := launcher.SubmitN(ctx, Count, *reducers, Part{corpus(i, *words), *reducers})
		for r, t := range tables {
			columns[r] = append(columns[r], t)
		}
	}
	var sums []launcher.Ref[Table]
	for _, c := range columns {
		sums = append(sums, Merge.SubmitArg(ctx, launcher.Gather(c)))
	}
	tables, err := launcher.Get(ctx, sums...)
	if err != nil {
		return err
	}
	total := Table{}
	for _, t := range tables {
		maps.Copy(total, t) // no word is in two of them
	}
	show(total)
	if *check {
		want := Table{}
		for i := range *parts {
			for _, word := range bytes.Fields(corpus(i, *words)) {
				want[string(word)]++
			}
		}
		if !maps.Equal(total, want) {
			return fmt.Errorf("the counts differ: %d words, %d counted here", len(total), len(want))
		}
		fmt.Println("the same as counted here")
	}
	return nil
}

func show(t Table) {
	sum := 0
	for _, n := range t {
		sum += n
	}
	fmt.Printf("%d words, %d different\n", sum, len(t))
	often := slices.SortedFunc(maps.Keys(t), func(a, b string) int { return cmp.Or(t[b]-t[a], cmp.Compare(a, b)) })
	for _, w := range often[:min(5, len(often))] {
		fmt.Printf("%8d %s\n", t[w], w)
	}
}
