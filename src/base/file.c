#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/size.h"

static nb_status fail_errno(nb_error *err, const char *doing, const char *path)
{
    nb_status st = errno == ENOSPC || errno == EDQUOT || errno == ENOMEM || errno == EFBIG
                       ? NB_ERESOURCE
                       : NB_EINPUT;
    return nb_fail(err, st, "%s: cannot %s: %s", path, doing, strerror(errno));
}

nb_status nb_map_open(nb_map *out, const char *path, nb_error *err)
{
    *out = (nb_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_errno(err, "open", path);
    nb_status st = NB_OK;
    struct stat s;
    if (fstat(fd, &s) != 0) {
        st = fail_errno(err, "stat", path);
    } else if (!S_ISREG(s.st_mode)) {
        st = nb_fail(err, NB_EINPUT, "%s: expected a regular file", path);
    } else if (s.st_size > 0) {
        void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            st = fail_errno(err, "map", path);
        } else {
            *out = (nb_map){.data = p, .n_bytes = (size_t)s.st_size};
        }
    }
    close(fd);
    return st;
}

void nb_map_close(nb_map *m)
{
    if (m->data) munmap((void *)m->data, m->n_bytes);
    *m = (nb_map){0};
}

void nb_map_release(const nb_map *m, const void *p, size_t n_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t begin = nb_align_up((size_t)((const unsigned char *)p - m->data), page);
    size_t end = (size_t)((const unsigned char *)p - m->data) + n_bytes;
    end = end / page * page;
    if (end > begin) madvise((void *)(m->data + begin), end - begin, MADV_DONTNEED);
}

nb_status nb_read_file(const char *path, size_t max_bytes, char **data, size_t *n_bytes,
                       nb_error *err)
{
    *data = NULL;
    *n_bytes = 0;
    nb_map m;
    NB_TRY(nb_map_open(&m, path, err));
    nb_status st = NB_OK;
    if (m.n_bytes > max_bytes) {
        st = nb_fail(err, NB_EINPUT, "%s: %zu bytes, expected at most %zu", path, m.n_bytes,
                     max_bytes);
    } else {
        char *p = malloc(m.n_bytes + 1);
        if (!p) {
            st = nb_fail_memory(err, path, m.n_bytes + 1);
        } else {
            if (m.n_bytes) memcpy(p, m.data, m.n_bytes);
            p[m.n_bytes] = 0;
            *data = p;
            *n_bytes = m.n_bytes;
        }
    }
    nb_map_close(&m);
    return st;
}

struct nb_outfile {
    int fd;
    char *path, *temp;
};

static void outfile_free(nb_outfile *f)
{
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    free(f->path);
    free(f->temp);
    free(f);
}

nb_status nb_outfile_open(nb_outfile **out, const char *path, nb_error *err)
{
    *out = NULL;
    nb_outfile *f = calloc(1, sizeof *f);
    if (!f) return nb_fail_memory(err, path, sizeof *f);
    f->fd = -1;
    size_t n = strlen(path);
    f->path = strdup(path);
    f->temp = malloc(n + sizeof ".tmp");
    if (!f->path || !f->temp) {
        outfile_free(f);
        return nb_fail_memory(err, path, n);
    }
    snprintf(f->temp, n + sizeof ".tmp", "%s.tmp", path);
    f->fd = open(f->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (f->fd < 0) {
        nb_status st = fail_errno(err, "create", f->temp);
        outfile_free(f);
        return st;
    }
    *out = f;
    return NB_OK;
}

nb_status nb_outfile_write(nb_outfile *f, const void *data, size_t n_bytes, nb_error *err)
{
    const char *p = data;
    while (n_bytes > 0) {
        ssize_t n = write(f->fd, p, n_bytes < (1u << 30) ? n_bytes : (1u << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(err, "write", f->temp);
        p += n;
        n_bytes -= (size_t)n;
    }
    return NB_OK;
}

/* A rename is on disk only when the directory that holds the name is. */
static nb_status sync_parent(const char *path, nb_error *err)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash == path ? strdup("/")
                : slash       ? strndup(path, (size_t)(slash - path))
                              : strdup(".");
    if (!dir) return nb_fail_memory(err, path, strlen(path));
    nb_status st = NB_OK;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL)) st = fail_errno(err, "sync", dir);
    if (fd >= 0) close(fd);
    free(dir);
    return st;
}

nb_status nb_outfile_commit(nb_outfile *f, nb_error *err)
{
    nb_status st = NB_OK;
    if (fsync(f->fd) != 0) st = fail_errno(err, "sync", f->temp);
    if (st == NB_OK && rename(f->temp, f->path) != 0) st = fail_errno(err, "rename to", f->path);
    if (st != NB_OK) {
        nb_outfile_abort(f);
        return st;
    }
    st = sync_parent(f->path, err);
    outfile_free(f);
    return st;
}

void nb_outfile_abort(nb_outfile *f)
{
    if (!f) return;
    unlink(f->temp);
    outfile_free(f);
}

nb_status nb_write_file(const char *path, const void *data, size_t n_bytes, nb_error *err)
{
    nb_outfile *f;
    NB_TRY(nb_outfile_open(&f, path, err));
    nb_status st = nb_outfile_write(f, data, n_bytes, err);
    if (st != NB_OK) {
        nb_outfile_abort(f);
        return st;
    }
    return nb_outfile_commit(f, err);
}

struct nb_scratch {
    int fd;
    char *path; /* that it had, for messages */
};

/* Where room cannot be promised, writing will tell. */
static nb_status reserve(const nb_scratch *f, int64_t n_bytes, nb_error *err)
{
    int code = n_bytes > 0 ? posix_fallocate(f->fd, 0, n_bytes) : 0;
    if (code == 0 || code == EINVAL || code == EOPNOTSUPP) return NB_OK;
    errno = code;
    return fail_errno(err, "make room", f->path);
}

nb_status nb_scratch_open(nb_scratch **out, const char *dir, int64_t n_bytes, nb_error *err)
{
    *out = NULL;
    nb_scratch *f = calloc(1, sizeof *f);
    if (!f) return nb_fail_memory(err, dir, sizeof *f);
    f->fd = -1;
    f->path = nb_path_join(dir, NB_SCRATCH_NAME);
    nb_status st = f->path ? NB_OK : nb_fail_memory(err, dir, strlen(dir));
    if (st == NB_OK) {
        f->fd = open(f->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (f->fd < 0) st = fail_errno(err, "create", f->path);
    }
    if (st == NB_OK && unlink(f->path) != 0) st = fail_errno(err, "remove", f->path);
    if (st == NB_OK) st = reserve(f, n_bytes, err);
    if (st != NB_OK) {
        nb_scratch_close(f);
        return st;
    }
    *out = f;
    return NB_OK;
}

nb_status nb_scratch_write(nb_scratch *f, int64_t at, const void *data, size_t n_bytes,
                           nb_error *err)
{
    const char *p = data;
    while (n_bytes > 0) {
        ssize_t n = pwrite(f->fd, p, n_bytes < (1u << 30) ? n_bytes : (1u << 30), (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(err, "write", f->path);
        p += n;
        at += n;
        n_bytes -= (size_t)n;
    }
    return NB_OK;
}

nb_status nb_scratch_read(nb_scratch *f, int64_t at, void *data, size_t n_bytes, nb_error *err)
{
    char *p = data;
    while (n_bytes > 0) {
        ssize_t n = pread(f->fd, p, n_bytes < (1u << 30) ? n_bytes : (1u << 30), (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(err, "read", f->path);
        if (n == 0) {
            return nb_fail(err, NB_EINPUT, "%s: ends at byte %lld, expected %zu more", f->path,
                           (long long)at, n_bytes);
        }
        p += n;
        at += n;
        n_bytes -= (size_t)n;
    }
    return NB_OK;
}

void nb_scratch_close(nb_scratch *f)
{
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    free(f->path);
    free(f);
}

nb_status nb_make_dir(const char *path, nb_error *err)
{
    if (mkdir(path, 0755) == 0 || (errno == EEXIST && nb_path_is_dir(path))) return NB_OK;
    return fail_errno(err, "make directory", path);
}

/* Our own directories are at most two deep; the bound keeps a hostile tree from the stack. */
static nb_status remove_tree(const char *path, int depth, nb_error *err)
{
    if (depth > 16) return nb_fail(err, NB_EINPUT, "%s: too deep to remove", path);
    DIR *d = opendir(path);
    if (!d) return fail_errno(err, "open directory", path);
    nb_status st = NB_OK;
    for (struct dirent *e; st == NB_OK && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        char *child = nb_path_join(path, e->d_name);
        struct stat s;
        if (!child) {
            st = nb_fail_memory(err, path, 0);
        } else if (lstat(child, &s) == 0 && S_ISDIR(s.st_mode)) {
            st = remove_tree(child, depth + 1, err);
        } else if (unlink(child) != 0) {
            st = fail_errno(err, "remove", child);
        }
        free(child);
    }
    closedir(d);
    if (st == NB_OK && rmdir(path) != 0) st = fail_errno(err, "remove", path);
    return st;
}

/* A link goes, what it points to stays. */
nb_status nb_remove_tree(const char *path, nb_error *err)
{
    struct stat s;
    if (lstat(path, &s) != 0) return errno == ENOENT ? NB_OK : fail_errno(err, "stat", path);
    if (S_ISDIR(s.st_mode)) return remove_tree(path, 0, err);
    return unlink(path) == 0 ? NB_OK : fail_errno(err, "remove", path);
}

nb_status nb_rename(const char *from, const char *to, nb_error *err)
{
    if (rename(from, to) != 0) return fail_errno(err, "rename", from);
    return sync_parent(to, err);
}

bool nb_path_exists(const char *path)
{
    struct stat s;
    return lstat(path, &s) == 0;
}

bool nb_path_is_dir(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

int64_t nb_file_bytes(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode) ? (int64_t)s.st_size : -1;
}

int64_t nb_disk_free(const char *path)
{
    struct statvfs v;
    char *p = strdup(path);
    int64_t bytes = -1;
    while (p) {
        if (statvfs(p, &v) == 0) {
            bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
            break;
        }
        char *slash = strrchr(p, '/');
        if (slash == p && p[1] == 0) break;
        if (slash == p) {
            p[1] = 0;
        } else if (slash) {
            *slash = 0;
        } else { /* a name in the working directory */
            if (statvfs(".", &v) == 0) bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
            break;
        }
    }
    free(p);
    return bytes;
}

char *nb_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir), m = strlen(name);
    char *p = malloc(n + m + 2);
    if (!p) return NULL;
    bool slash = n > 0 && dir[n - 1] == '/';
    snprintf(p, n + m + 2, "%s%s%s", dir, slash ? "" : "/", name);
    return p;
}
