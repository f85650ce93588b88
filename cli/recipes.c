#include "recipes.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "options.h"

#define MAX_DIRS 4
#define SUFFIX   ".yaml"

typedef struct recipe_dirs {
    char path[MAX_DIRS][PATH_MAX];
    int n;
} recipe_dirs;

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), n_end = strlen(end);
    return n >= n_end && strcmp(s + n - n_end, end) == 0;
}

static bool is_file_name(const char *s)
{
    return strchr(s, '/') || ends_with(s, ".yaml") || ends_with(s, ".yml");
}

/* A path that does not fit is left out. */
static void add_dir(recipe_dirs *d, const char *base, const char *tail)
{
    int n = snprintf(d->path[d->n], sizeof d->path[0], "%s%s", base, tail);
    if (n > 0 && (size_t)n < sizeof d->path[0]) d->n++;
}

static void list_dirs(recipe_dirs *d)
{
    char exe[PATH_MAX];
    d->n = 0;
    const char *env = getenv("NIBBLE_RECIPES");
    if (env && *env) add_dir(d, env, "");
    add_dir(d, "recipes", "");
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0) return;
    exe[n] = 0;
    char *slash = strrchr(exe, '/');
    if (!slash) return;
    *slash = 0;
    add_dir(d, exe, "/../recipes");
    add_dir(d, exe, "/../share/nibble/recipes");
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names of the recipes in all directories, sorted, each once. */
static size_t list_names(const recipe_dirs *d, char *names[], size_t max)
{
    size_t n = 0, n_kept = 0;
    for (int i = 0; i < d->n; i++) {
        DIR *dir = opendir(d->path[i]);
        if (!dir) continue;
        for (struct dirent *e; n < max && (e = readdir(dir));) {
            if (!ends_with(e->d_name, SUFFIX)) continue;
            names[n] = strndup(e->d_name, strlen(e->d_name) - strlen(SUFFIX));
            if (names[n]) n++;
        }
        closedir(dir);
    }
    qsort(names, n, sizeof names[0], compare_names);
    for (size_t i = 0; i < n; i++) {
        if (n_kept && strcmp(names[n_kept - 1], names[i]) == 0)
            free(names[i]);
        else
            names[n_kept++] = names[i];
    }
    return n_kept;
}

static nb_status fail_unknown(const recipe_dirs *d, const char *name, nb_error *err)
{
    char *names[64], list[400] = "";
    size_t n = list_names(d, names, 64), used = 0;
    const char *near = cli_suggest(name, (const char *const *)names, n);
    if (near)
        snprintf(list, sizeof list, "did you mean %s?", near);
    else if (n == 0)
        snprintf(list, sizeof list, "no recipes found; set NIBBLE_RECIPES");
    else
        used = (size_t)snprintf(list, sizeof list, "there are");
    for (size_t i = 0; i < n; i++) {
        if (used && used < sizeof list) {
            used += (size_t)snprintf(list + used, sizeof list - used, " %s", names[i]);
        }
        if (names[i] != near) free(names[i]);
    }
    nb_status st = cli_fail(err, NB_EUSAGE, "unknown recipe %.64s; %s", name, list);
    free((char *)near);
    return st;
}

nb_status cli_read_recipe(const char *name_or_file, char **text, nb_error *err)
{
    size_t n_bytes;
    if (is_file_name(name_or_file)) return nb_file_read(name_or_file, text, &n_bytes, err);
    recipe_dirs dirs;
    list_dirs(&dirs);
    for (int i = 0; i < dirs.n; i++) {
        char path[PATH_MAX + NAME_MAX];
        int n = snprintf(path, sizeof path, "%s/%s" SUFFIX, dirs.path[i], name_or_file);
        if (n < 0 || (size_t)n >= sizeof path || access(path, R_OK) != 0) continue;
        return nb_file_read(path, text, &n_bytes, err);
    }
    return fail_unknown(&dirs, name_or_file, err);
}
