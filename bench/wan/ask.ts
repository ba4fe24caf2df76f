// Calls the gateway's admin API from within its namespace: a child process of the benchmark, which runs outside.
// Messages: { id, request } in, { id, value } or { id, error } out.
import { requestJson } from '../../ops/http-client.ts'

process.on('message', ({ id, request }: { id: number; request: Parameters<typeof requestJson>[0] }) => {
  requestJson(request).then(
    value => process.send?.({ id, value }),
    (error: Error) => process.send?.({ id, error: error.message }),
  )
})
process.send?.('ready')
