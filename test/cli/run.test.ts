// The command table as a whole: help, unknown words, exit codes, and that README and docs agree with it.
import { execFile } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { parseOptions } from '../../cli/options.ts'
import { clean, EXIT_MEANINGS, errorText, showError, table } from '../../cli/output.ts'
import { cliReference } from '../../cli/reference.ts'
import { run } from '../../cli/run.ts'
import { commands } from '../../cli/table.ts'
import { version } from '../../cli/version.ts'
import { EXIT, GodwitError } from '../../wire/errors.ts'
import { assert, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: commands')

const godwit = async (...words: string[]) => {
  const io = recordingIo()
  return { code: await run(words, io), out: io.stdout, err: io.stderr }
}
const readme = () => readFile(new URL('../../README.md', import.meta.url), 'utf8')

test('every command has help with usage, options and an example that names it', async () => {
  for (const command of commands) {
    if (command.isPassThrough) continue
    for (const words of [
      [...command.name.split(' '), '--help'],
      ['help', ...command.name.split(' ')],
    ]) {
      const { code, out, err } = await godwit(...words)
      assert.is(code, 0, command.name)
      assert.is(err, '')
      assert.ok(out.startsWith(`Usage: godwit ${command.name}`), command.name)
      for (const name of Object.keys(command.options)) assert.ok(out.includes(`--${name}`), `${command.name} --${name}`)
    }
    assert.ok(command.examples.length > 0, command.name)
    for (const example of command.examples) assert.ok(example.startsWith(`godwit ${command.name}`), example)
  }
})

test('godwit --help lists every command; groups list theirs', async () => {
  const { code, out } = await godwit('--help')
  assert.is(code, 0)
  for (const { name, summary } of commands) assert.ok(out.includes(`  ${name} `) && out.includes(summary), name)
  assert.ok((await godwit('root', '--help')).out.includes('root sign'))
  assert.equal([(await godwit()).code, (await godwit('vm')).code], [2, 2])
})

test('every command that asks the gateway can be given its address, token and authority', () => {
  const asking = commands.filter(({ options }) => options['gateway'] !== undefined)
  assert.ok(asking.length >= 10, `only ${asking.length} commands ask the gateway`)
  for (const { name, options } of asking)
    for (const option of ['token-file', 'gateway-ca']) assert.ok(options[option] !== undefined, `godwit ${name} has no --${option}`)
})

test('--version prints the version of package.json and nothing else', async () => {
  assert.equal(await godwit('--version'), { code: 0, out: `${version}\n`, err: '' })
})

test('an unknown command or option is USAGE with exit code 2 and a suggestion', async () => {
  const cases: [string[], RegExp][] = [
    [['mirgate'], /unknown command 'mirgate' \(did you mean migrate\?\)/],
    [['root', 'sing'], /unknown command 'root sing' \(did you mean root sign\?\)/],
    [['vm', 'xyzzy'], /unknown command 'vm xyzzy'/],
    [['migrate', 'x', '--too', 'b'], /unknown option --too \(did you mean --to\?\)/],
    [['status', '--jsn'], /unknown option --jsn \(did you mean --json\?\)/],
  ]
  for (const [words, message] of cases) {
    const { code, out, err } = await godwit(...words)
    assert.is(code, EXIT.usage, words.join(' '))
    assert.is(out, '')
    assert.match(err, /^error USAGE: /)
    assert.match(err, message)
    assert.match(err, /hint: see godwit /)
  }
})

test('every command refuses an unknown option before it does anything', async () => {
  for (const command of commands) {
    if (command.isPassThrough) continue
    const { code, err } = await godwit(...command.name.split(' '), '--no-such-option')
    assert.is(code, EXIT.usage, command.name)
    assert.match(err, /unknown option --no-such-option/)
  }
})

test('an error shows code, message, cause and hint; with --json one object on stdout as well', () => {
  const io = recordingIo()
  const cause = new GodwitError('PREFLIGHT_MEMORY', 'site b has 12 MiB free')
  const code = showError(io, new GodwitError('MIGRATION_REFUSED', 'site b refused', { cause }), true)
  assert.is(code, EXIT.refused)
  assert.is(
    io.stderr,
    'error MIGRATION_REFUSED: site b refused\n  cause: PREFLIGHT_MEMORY: site b has 12 MiB free\n  hint: see the cause\n',
  )
  assert.equal(JSON.parse(io.stdout), { error: { code: 'MIGRATION_REFUSED', message: 'site b refused', hint: 'see the cause' } })
  assert.is(showError(recordingIo(), new Error('oops'), false), EXIT.internal)
})

test('text from elsewhere cannot steer the terminal', () => {
  assert.is(clean('a\u001b[31mb\u0007\n'), 'a?[31mb?\n')
  assert.not.ok(errorText(new GodwitError('VM_UNKNOWN', 'no \u001b]0;x\u0007')).includes('\u001b'))
  assert.is(table(['A', 'B'], [['1\u001b', 'x']]), 'A   B\n1?  x\n')
  assert.is(table(['A'], [], 'no VMs'), 'no VMs\n')
})

test('docs/reference/cli.md is what the command table gives, with every command and exit code', async () => {
  const text = await readFile(new URL('../../docs/reference/cli.md', import.meta.url), 'utf8')
  assert.is(text, cliReference(commands), 'run node bin/run.js scripts/cli-reference.ts')
  for (const { name } of commands) assert.ok(text.includes(`\n### godwit ${name}\n`), `the document lacks godwit ${name}`)
  for (const [name, code] of Object.entries(EXIT)) {
    assert.ok(text.includes(`| ${code} | ${EXIT_MEANINGS[name as keyof typeof EXIT]} |`), `the document lacks exit code ${code}`)
  }
})

const documents = async () => {
  const docs = await readdir(new URL('../../docs', import.meta.url), { recursive: true })
  const texts = docs.filter(name => name.endsWith('.md')).map(name => readFile(new URL(`../../docs/${name}`, import.meta.url), 'utf8'))
  return [await readme(), ...(await Promise.all(texts))]
}

test('every godwit command in a shell block of README and docs parses', async () => {
  const blocks = (await documents()).flatMap(text => [...text.matchAll(/^ *```sh\n([\s\S]*?)```/gm)].map(match => match[1]!))
  // In the tour `at PLACE ...` is `godwit ...` with that place's folder.
  const lines = blocks
    .join('\n')
    .replace(/\\\n\s*/g, ' ')
    .split('\n')
    .map(line => /(?:^|\$\()(?:godwit|at [a-z]+) ([^()#&|]*)/.exec(line)?.[1]?.trim())
    .filter(line => line !== undefined)
  assert.ok(lines.length >= 35, `only ${lines.length} commands in the documents`)
  for (const line of lines) {
    const words = line.replace(/ [<>].*$/, '').split(/\s+/)
    const found = commands.find(({ name }) => name === words.slice(0, 2).join(' ')) ?? commands.find(({ name }) => name === words[0])
    assert.ok(found, `no such command: ${line}`)
    if (!found.isPassThrough) parseOptions(found, words.slice(found.name.split(' ').length))
  }
})

test('the real command ends with the documented exit codes', async () => {
  const file = fileURLToPath(new URL('../../bin/godwit.js', import.meta.url))
  const real = (...words: string[]) =>
    new Promise<{ code: number; stdout: string; stderr: string }>(resolve => {
      execFile(process.execPath, [file, ...words], { env: { PATH: process.env['PATH'] } }, (error, stdout, stderr) =>
        resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
      )
    })
  assert.equal(await real('--version'), { code: 0, stdout: `${version}\n`, stderr: '' })
  assert.is((await real('nonsense')).code, EXIT.usage)
  const away = await real('vm', 'list', '--socket', '/nonexistent/node.sock', '--json')
  assert.is(away.code, EXIT.unreachable)
  assert.is(JSON.parse(away.stdout).error.code, 'NODE_UNREACHABLE')
})

test.run()
