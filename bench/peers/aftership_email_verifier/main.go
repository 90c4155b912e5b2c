// AfterShip/email-verifier with SMTP checks on and its defaults otherwise, but for sender and HELO: it asks a random
// recipient first. `peer LIST CONCURRENCY`, so many checks at a time.
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	verifier "github.com/AfterShip/email-verifier"
)

func main() {
	file, err := os.Open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	concurrency, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	ours := verifier.NewVerifier().EnableSMTPCheck().FromEmail("probe@probe.lab").HelloName("probe.lab")
	rows := make(chan string, concurrency)
	var asked, answered atomic.Int64
	var workers sync.WaitGroup
	for range concurrency {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for row := range rows {
				asked.Add(1)
				if found, err := ours.Verify(row); err == nil && found.SMTP != nil && found.SMTP.HostExists {
					answered.Add(1)
				} else if err != nil && os.Getenv("PEER_DEBUG") != "" {
					log.Print(row, " ", err)
				}
			}
		}()
	}
	lines := bufio.NewScanner(file)
	lines.Scan() // the header
	for lines.Scan() {
		rows <- strings.TrimSpace(strings.SplitN(lines.Text(), ",", 2)[0])
	}
	close(rows)
	workers.Wait()
	fmt.Printf("{\"addresses\": %d, \"answered\": %d}\n", asked.Load(), answered.Load())
}
