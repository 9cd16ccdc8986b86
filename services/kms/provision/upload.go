package provision

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"

	provisionv1 "teekms/gen/provision/v1"
)

// maxParts bounds the parts of a form.
const maxParts = 8

const (
	mediaForm  = "multipart/form-data"
	mediaBytes = "application/octet-stream"
	mediaP12   = "application/x-pkcs12"
)

// uploadTypes are what /pkcs12 takes: a form as curl -F makes it, or the bytes
// themselves.
var uploadTypes = []string{mediaForm, mediaBytes, mediaP12} //nolint:gochecknoglobals // a constant in all but name

// servePKCS12 is SetPkcs12.
func (s *Server) servePKCS12(ctx context.Context, body io.Reader, media string, params map[string]string) (string, error) {
	var file []byte
	var err error
	if media == mediaForm {
		file, err = formFile(body, params["boundary"])
	} else {
		file, err = readFile(body)
	}
	if err != nil {
		return "", err
	}
	res, err := s.SetPkcs12(ctx, &provisionv1.SetPkcs12Request{Pkcs12: file})
	return res.GetSuccess(), err
}

// readFile reads an upload within its bound.
func readFile(r io.Reader) ([]byte, error) {
	file, err := io.ReadAll(io.LimitReader(r, maxUpload+1))
	switch {
	case err != nil:
		return nil, formError(err)
	case len(file) > maxUpload:
		return nil, refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the PKCS#12 file is larger than %d bytes", maxUpload))
	}
	return file, nil
}

// formFile returns the one file of a form. Names of parts do not matter, as
// clients choose various ones; parts that are no files are ignored.
func formFile(body io.Reader, boundary string) ([]byte, error) {
	if boundary == "" {
		return nil, refuse(http.StatusBadRequest, "the form has no boundary")
	}
	form := multipart.NewReader(body, boundary)
	var file []byte
	found := false
	for n := 1; ; n++ {
		part, err := form.NextRawPart()
		switch {
		case errors.Is(err, io.EOF) && !found:
			return nil, refuse(http.StatusBadRequest, "the form holds no file")
		case errors.Is(err, io.EOF):
			return file, nil
		case err != nil:
			return nil, formError(err)
		case n > maxParts:
			return nil, refuse(http.StatusBadRequest, fmt.Sprintf("the form has more than %d parts", maxParts))
		}
		isFile, err := checkPart(part, n)
		switch {
		case err != nil:
			return nil, err
		case !isFile: // NextRawPart reads over it
			continue
		case found:
			return nil, refuse(http.StatusBadRequest, "the form holds two files: send one PKCS#12 file")
		}
		if file, err = readFile(part); err != nil {
			return nil, err
		}
		found = true
	}
}

// checkPart tells whether a part is a file: it has a file name, or the type of
// one.
func checkPart(part *multipart.Part, n int) (isFile bool, err error) {
	if part.Header.Get("Content-Transfer-Encoding") != "" && part.Header.Get("Content-Transfer-Encoding") != "binary" {
		return false, refuse(http.StatusBadRequest, fmt.Sprintf("part %d of the form is encoded: send the file as it is", n))
	}
	media, _, err := mime.ParseMediaType(part.Header.Get("Content-Type"))
	switch {
	case part.Header.Get("Content-Type") == "":
		return part.FileName() != "", nil
	case err != nil:
		return false, refuse(http.StatusBadRequest, fmt.Sprintf("the Content-Type of part %d of the form cannot be read", n))
	case media == mediaBytes, media == mediaP12:
		return true, nil
	case part.FileName() != "":
		return false, refuse(http.StatusUnsupportedMediaType,
			fmt.Sprintf("part %d of the form is a file of another type: want %s or %s", n, mediaBytes, mediaP12))
	}
	return false, nil
}

// formError gives an error of reading a form its status: that of the body below
// it, else that of a malformed form.
func formError(err error) error {
	if e, ok := errors.AsType[*httpError](err); ok {
		return e
	}
	return refuse(http.StatusBadRequest, "the form is malformed or cut off")
}
