// Uploads with Go's client: prints a line `CLIENT MODE SIZE STATUS` for each. Arguments: URL SIZE...
package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func upload(client *http.Client, url string, body []byte, change func(*http.Request)) string {
	request, _ := http.NewRequest("POST", url, bytes.NewReader(body))
	change(request)
	response, err := client.Do(request)
	if err != nil {
		return strings.ReplaceAll(err.Error(), " ", "_")
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	return strconv.Itoa(response.StatusCode)
}

func main() {
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ExpectContinueTimeout: 10 * time.Second,
	}
	client := &http.Client{Transport: transport, Timeout: 60 * time.Second}
	modes := map[string]func(*http.Request){
		"keep-alive": func(*http.Request) {},
		"close":      func(request *http.Request) { request.Close = true },
		"chunked":    func(request *http.Request) { request.ContentLength = -1 },
		"expect":     func(request *http.Request) { request.Header.Set("Expect", "100-continue") },
	}
	for _, text := range os.Args[2:] {
		size, _ := strconv.Atoi(text)
		body := make([]byte, size)
		for mode, change := range modes {
			fmt.Println("go", mode, size, upload(client, os.Args[1], body, change))
		}
	}
}
