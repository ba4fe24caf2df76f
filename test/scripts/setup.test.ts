// Setup's reading of apt's sources, and its behaviour where nothing is to be done. Installing is tried by hand in a
// fresh Debian, not here.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const script = (name: string) => fileURLToPath(new URL(`../../scripts/${name}`, import.meta.url))
// Plain JavaScript without types.
const { signedBy } = (await import(script('setup/debian.js'))) as { signedBy(text: string, site: string): string | undefined }
const test = suite('setup')
const site = 'http://mirror.example/debian/'

test('the key of a one-line source is found among its options', () => {
  assert.is(signedBy(`deb [arch=amd64 signed-by=/keys/a.gpg] ${site} bookworm main\n`, site), '/keys/a.gpg')
  assert.is(signedBy(`deb [signed-by=/keys/a.gpg arch=amd64] http://mirror.example/debian bookworm main\n`, site), '/keys/a.gpg')
  assert.is(signedBy(`# deb [signed-by=/keys/no.gpg] ${site} x main\ndeb ${site} bookworm main\n`, site), undefined)
})

test('the key of a deb822 source is that of the stanza with its address', () => {
  const other = 'Types: deb\nURIs: http://other.example/debian\nSuites: x\nSigned-By: /keys/other.gpg\n'
  const ours = `Types: deb\n# a comment\nURIs: ${site}\nSuites: bookworm\nComponents: main\nSigned-By: /keys/ours.gpg\n`
  assert.is(signedBy(`${other}\n${ours}`, site), '/keys/ours.gpg')
  assert.is(signedBy(`${ours}\n${other}`, site), '/keys/ours.gpg')
  assert.is(signedBy(ours.replace(/Signed-By.*\n/, ''), site), undefined)
})

test('a key that stands in the source itself is given as a block', () => {
  const key = 'Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n =abcd\n -----END PGP PUBLIC KEY BLOCK-----\n'
  assert.is(
    signedBy(`Types: deb\nURIs: ${site}\n${key}Suites: bookworm\n`, site),
    '-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n',
  )
})

test('where the packages are there, setup ends silently; an unknown option is refused', () => {
  const run = (...args: string[]) => spawnSync(process.execPath, [script('setup.js'), ...args], { encoding: 'utf8', timeout: 20_000 })
  const ready = run('--npm-only')
  assert.equal([ready.status, ready.stdout], [0, ''])
  const refused = run('--tset')
  assert.is(refused.status, 2)
  assert.match(refused.stderr, 'unknown option --tset')
})

test('without root, setup installs no Debian package: it says so first, and names what is missing', async () => {
  await using folder = await tempFolder()
  const [log, apt] = [join(folder.path, 'log'), join(folder.path, 'apt-get')]
  await writeFile(apt, `#!/bin/sh\necho "$@" >> ${log}\nexit 1\n`, { mode: 0o755 })
  // No QEMU on this PATH, and a process that is not root, whoever runs the test.
  const asUser = ['--import', 'data:text/javascript,process.getuid=()=>1000']
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [...asUser, script('setup.js'), ...args], { encoding: 'utf8', timeout: 20_000, env: { PATH: folder.path } })
  const plain = run()
  assert.is(plain.status, 2, plain.stderr)
  assert.match(plain.stdout, /^setup: no Debian package is installed, because /)
  assert.match(plain.stdout, /missing: QEMU 9 or newer/)
  const tests = run('--test')
  assert.is(tests.status, 0, tests.stderr)
  assert.match(tests.stdout, /^setup: no Debian package is installed, because /)
  assert.match(tests.stdout, /the tests that need it are skipped/)
  // Downloads for the guest image need no root and change nothing outside this folder.
  assert.not.match(existsSync(log) ? readFileSync(log, 'utf8') : '', /\b(install|update)\b/)
})

test.run()
