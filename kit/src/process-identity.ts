/** Which process is it still: told by its start time, because pids are used again (proc(5)). */
import { readFileSync } from 'node:fs'

/** Fields of /proc/PID/stat from the third on: state, parent, group, …; none where there is no such process or no /proc. */
export function statFields(pid: number): readonly string[] {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // the second field is the name in brackets, which may hold anything
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  } catch {
    return []
  }
}

/** Start time in clock ticks (field 22); empty where there is no /proc. */
export function startTicks(pid: number): string {
  return statFields(pid)[19] ?? ''
}

/** Whether the process with this start time runs; without one, whether the pid does. */
export function isSameProcess(pid: number, ticks: string): boolean {
  try {
    process.kill(pid, 0)
  } catch (thrown) {
    // it runs, and is somebody else's
    if ((thrown as NodeJS.ErrnoException).code !== 'EPERM') return false
  }
  const fields = statFields(pid)
  // a zombie has ended, whether somebody asks for its exit code or not
  return fields[0] !== 'Z' && (ticks === '' || fields[19] === ticks)
}
