/* Runs a command in a process group of its own whose parent is in another group of the same session, as a shell's job is: in a group
 * without such a parent, as that of process 1's children is, SIGTSTP stops nobody (setpgid(2)). */
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    setsid();
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        execv(argv[1], argv + 1);
        _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
