require "base64"
require "openssl"

# body: the raw bytes of the request, such as request.body.read, before anything parses them.
def genuine?(secret, headers, body)
  timestamp = headers["webhook-timestamp"].to_s
  return false unless timestamp.match?(/\A\d+\z/) && (Time.now.to_i - timestamp.to_i).abs <= 300

  key = Base64.decode64(secret.delete_prefix("whsec_"))
  signed = "#{headers["webhook-id"]}.#{timestamp}.#{body}"
  expected = "v1," + Base64.strict_encode64(OpenSSL::HMAC.digest("SHA256", key, signed))
  headers["webhook-signature"].to_s.split.any? { |one| OpenSSL.secure_compare(one, expected) }
end
