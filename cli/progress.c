#include "progress.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BAR_WIDTH      24
#define REDRAW_SECONDS 0.1
#define LINE_SECONDS   5.0

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

void cli_signals_init(void)
{
    struct sigaction a = {.sa_handler = on_interrupt, .sa_flags = SA_RESETHAND | SA_RESTART};
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    /* A closed pipe shows as a write error: long work is not killed by a pager that went away. */
    signal(SIGPIPE, SIG_IGN);
}

bool cli_interrupted(void) { return interrupted != 0; }

double cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void cli_progress_init(cli_progress *p)
{
    memset(p, 0, sizeof *p);
    p->terminal = isatty(STDERR_FILENO) != 0;
}

static void format_time(char *out, size_t n, double seconds)
{
    long s = (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, n, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, n, "%ld:%02ld", s / 60, s % 60);
}

static int terminal_columns(void)
{
    struct winsize w = {0};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20) return w.ws_col;
    return 80;
}

static void format_left(const cli_progress *state, const nb_progress *p, char *out, size_t n)
{
    int64_t steps = p->done - state->done_before;
    out[0] = 0;
    if (steps <= 0 || p->done >= p->total) return;
    char left[24];
    double per_step = (cli_now() - state->begin) / (double)steps;
    format_time(left, sizeof left, per_step * (double)(p->total - p->done));
    snprintf(out, n, ", %s left", left);
}

static void draw_bar(const nb_progress *p, const char *left)
{
    char bar[BAR_WIDTH + 1], line[512];
    double part = p->total > 0 ? (double)p->done / (double)p->total : 0;
    int filled = (int)(part * BAR_WIDTH);
    if (filled > BAR_WIDTH) filled = BAR_WIDTH;
    memset(bar, '.', BAR_WIDTH);
    if (filled > 0) memset(bar, '#', (size_t)filled);
    bar[BAR_WIDTH] = 0;
    snprintf(line, sizeof line, "%s [%s] %lld/%lld%s%s%s", p->phase, bar, (long long)p->done,
             (long long)p->total, left, p->note ? "  " : "", p->note ? p->note : "");
    fprintf(stderr, "\r\033[K%.*s", terminal_columns() - 1, line);
    fflush(stderr);
}

static void begin_phase(cli_progress *state, const nb_progress *p)
{
    snprintf(state->phase, sizeof state->phase, "%s", p->phase);
    state->begin = cli_now();
    state->last = 0;
    state->done_before = p->done;
}

bool cli_progress_show(void *progress, const nb_progress *p)
{
    cli_progress *state = progress;
    if (strcmp(state->phase, p->phase) != 0) begin_phase(state, p);
    double now = cli_now(), pause = state->terminal ? REDRAW_SECONDS : LINE_SECONDS;
    if (now - state->last >= pause || p->done == p->total) {
        char left[48];
        format_left(state, p, left, sizeof left);
        if (state->terminal)
            draw_bar(p, left);
        else {
            fprintf(stderr, "%s: %lld of %lld%s%s%s\n", p->phase, (long long)p->done,
                    (long long)p->total, left, p->note ? ": " : "", p->note ? p->note : "");
        }
        state->drawn = state->terminal;
        state->last = now;
    }
    if (p->done == p->total) cli_progress_end(state); /* a result may follow */
    return !interrupted;
}

void cli_progress_end(cli_progress *p)
{
    if (p->drawn) fprintf(stderr, "\r\033[K");
    p->drawn = false;
}
