// Package digits holds the UCI optical digits: 1,797 images of 8x8 grey values and the
// digit that each shows. See README.md for their source and licence.
package digits

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/csv"
	"fmt"
	"strconv"
)

//go:embed digits.csv.gz
var file []byte

// Shape of the data.
const (
	Images   = 1797
	Features = 64
	Classes  = 10
)

// Load gives the images, Features values from 0 to 1 each, one after the other, and the
// label of each, 0 to 9.
func Load() (x []float64, y []int, err error) {
	z, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, nil, fmt.Errorf("digits: %w", err)
	}
	rows, err := csv.NewReader(z).ReadAll()
	if err != nil {
		return nil, nil, fmt.Errorf("digits: %w", err)
	}
	for _, row := range rows {
		for i, field := range row {
			v, err := strconv.Atoi(field)
			if err != nil {
				return nil, nil, fmt.Errorf("digits: %w", err)
			}
			if i < Features {
				x = append(x, float64(v)/16)
			} else {
				y = append(y, v)
			}
		}
	}
	return x, y, nil
}
