// godwit doctor: what on this host is ready for which method, and what to do about the rest.
import { EXIT } from '../../wire/errors.ts'
import { command, shared } from '../command.ts'
import type { Check } from '../doctor.ts'
import { clean, json } from '../output.ts'

export const doctor = command({
  name: 'doctor',
  summary: 'say what on this host is ready, for which method, and what to do about the rest',
  details: 'Changes nothing. Each line is ok, warn (works, but not as well as it could) or fail. Exit code 0, or 3 when something fails.',
  options: { json: shared.json },
  examples: ['godwit doctor', 'godwit doctor --json'],
  run: async ({ options, io }) => {
    const { runChecks } = await import('../doctor.ts')
    const checks = await runChecks(io)
    const hasFailed = checks.some(({ state }) => state === 'fail')
    io.out(options.json ? json({ ready: !hasFailed, checks }) : renderChecks(checks))
    return hasFailed ? EXIT.refused : EXIT.ok
  },
})

/** Pure. */
export function renderChecks(checks: readonly Check[]): string {
  const width = Math.max(...checks.map(({ name }) => name.length)) + 2
  const lines = checks.flatMap(({ name, state, detail, advice }) => [
    `${state.padEnd(6)}${name.padEnd(width)}${clean(detail)}`,
    ...(advice === undefined ? [] : [`${' '.repeat(6 + width)}-> ${clean(advice)}`]),
  ])
  const count = (wanted: string) => checks.filter(({ state }) => state === wanted).length
  return `${lines.join('\n')}\n\n${count('ok')} ok, ${count('warn')} warn, ${count('fail')} fail\n`
}
