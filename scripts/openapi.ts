// Writes docs/reference/openapi-gateway.json, openapi-node.json and the tables of routes in docs/reference/protocol.md.
// Run: node bin/run.js scripts/openapi.ts. A test compares the committed files with the output of this script.
import { readFileSync, writeFileSync } from 'node:fs'
import { NODE_DOCUMENT } from '../edge-node/api.ts'
import { ADMIN_DOCUMENT } from '../gateway/fronts/admin.ts'
import { type ApiDocument, openApiText, routeRows } from '../ops/openapi.ts'
import { readArguments, runScript } from '../ops/script.ts'

const fileOf = (name: string) => new URL(`../docs/reference/${name}`, import.meta.url)
const APIS: { name: string; heading: string; api: ApiDocument }[] = [
  { name: 'openapi-gateway.json', heading: '### Routes of the gateway', api: ADMIN_DOCUMENT },
  { name: 'openapi-node.json', heading: '### Routes of the node', api: NODE_DOCUMENT },
]

/** The document with these rows as the body of the first table below the heading. */
function withRows(document: string, heading: string, rows: string[]): string {
  const lines = document.split('\n')
  const first = lines.findIndex((line, at) => at > lines.indexOf(heading) && line.startsWith('| --- '))
  if (!lines.includes(heading) || first < 0) throw new TypeError(`docs/reference/protocol.md has no table below ${heading}`)
  const end = lines.findIndex((line, at) => at > first && !line.startsWith('|'))
  return [...lines.slice(0, first + 1), ...rows, ...lines.slice(end)].join('\n')
}

await runScript('Usage: node bin/run.js scripts/openapi.ts', () => {
  readArguments({ options: {} })
  const protocol = fileOf('protocol.md')
  let document = readFileSync(protocol, 'utf8')
  for (const { name, heading, api } of APIS) {
    writeFileSync(fileOf(name), openApiText(api))
    document = withRows(document, heading, routeRows(api))
    console.log(`wrote docs/reference/${name}`)
  }
  writeFileSync(protocol, document)
  console.log('wrote the tables of routes in docs/reference/protocol.md')
})
