"""Which addresses stand behind a Service: EndpointSlices and Endpoints as pure functions.

``ports`` resolves target ports, ``members`` turns pods into endpoints, ``slices`` packs them, ``hints``
adds topology hints, ``legacy`` makes Endpoints objects and mirrors hand-made ones, ``apiserver`` makes those
of the API's own service.
"""
